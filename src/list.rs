//! Taking out of a vector, without the panic that heapless keeps for an index that is too great.

use heapless::Vec;

/// Takes one out; those behind it move up.
pub(crate) fn take<T: Copy, const N: usize>(from: &mut Vec<T, N>, index: usize) -> Option<T> {
    let taken = *from.get(index)?;
    let mut at = 0_usize;
    from.retain(|_| {
        let stays = at != index;
        at = at.saturating_add(1);
        stays
    });
    Some(taken)
}

/// Takes one out; the last takes its place.
pub(crate) fn swap_take<T, const N: usize>(from: &mut Vec<T, N>, index: usize) -> Option<T> {
    if index >= from.len() {
        return None;
    }
    let last = from.pop()?;
    match from.get_mut(index) {
        Some(place) => Some(core::mem::replace(place, last)),
        None => Some(last),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of<const N: usize>(items: [u8; N]) -> Vec<u8, 4> {
        items.into_iter().collect()
    }

    #[test]
    fn one_is_taken_and_the_others_stay_in_their_order() {
        let left = |index| {
            let mut list = of([1, 2, 3]);
            (take(&mut list, index), list)
        };
        assert_eq!(left(0), (Some(1), of([2, 3])));
        assert_eq!(left(2), (Some(3), of([1, 2])));
        assert_eq!(left(3), (None, of([1, 2, 3])));
    }

    #[test]
    fn one_is_taken_and_the_last_is_in_its_place() {
        let left = |index| {
            let mut list = of([1, 2, 3]);
            (swap_take(&mut list, index), list)
        };
        assert_eq!(left(0), (Some(1), of([3, 2])));
        assert_eq!(left(2), (Some(3), of([1, 2])));
        assert_eq!(left(3), (None, of([1, 2, 3])));
    }
}
