//! Writes the seeds of every target below a folder: `cargo run --example seeds -- FOLDER`.

use std::path::Path;
use std::{env, fs, io};

fn main() -> io::Result<()> {
    let folder = env::args_os().nth(1).ok_or_else(|| io::Error::other("name the folder the seeds go to"))?;
    for (target, _) in riscv_viommu_fuzz::TARGETS {
        let folder = Path::new(&folder).join(target);
        fs::create_dir_all(&folder)?;
        for (index, seed) in riscv_viommu_fuzz::seeds::seeds(target).iter().enumerate() {
            fs::write(folder.join(format!("seed-{index:02}")), seed)?;
        }
    }
    Ok(())
}
