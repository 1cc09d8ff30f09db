# Prints the lines of Rust files that panic on purpose; exits 1 where there is one. Skips what is
# under #[cfg(test)], src/mock and comments. Relies on rustfmt: an item ends at its own indentation.

# The folder where a `mod NAME;` of this file has its file.
function home(file) {
    if (file ~ /\/(mod|lib|main)\.rs$/)
        sub(/[^\/]*$/, "", file)
    else
        sub(/\.rs$/, "/", file)
    return file
}

function indentation(line) {
    match(line, /^ */)
    return substr(line, 1, RLENGTH)
}

FNR == 1 { whole_file = attribute = inside = 0 }

/^#!\[cfg\(test\)\]/ { whole_file = 1 }

whole_file { next }

inside {
    if (indentation($0) == outer && $0 ~ /^ *[])}]/ && $0 ~ /[]})>;,]$/)
        inside = 0
    next
}

/^ *#\[cfg\(test\)\]$/ {
    attribute = 1
    next
}

attribute {
    # More attributes, or a comment, before the item.
    if ($0 ~ /^ *(#\[|\/\/)/)
        next
    attribute = 0
    outer = indentation($0)
    if (match($0, /mod [a-z0-9_]+;$/))
        test_files[home(FILENAME) substr($0, RSTART + 4, RLENGTH - 5)] = 1
    else
        inside = $0 !~ /[};,]$/
    next
}

{
    code = $0
    sub(/(^|[ \t])\/\/.*/, "", code)
    if (code ~ /\.unwrap\(|\.expect\(|(^|[^a-z_])(panic|unreachable|todo|unimplemented)!/) {
        files[++count] = FILENAME
        lines[count] = FILENAME ":" FNR ": " $0
    }
}

END {
    for (i = 1; i <= count; i++) {
        skip = files[i] ~ /^src\/mock(\/|\.rs$)/
        for (test in test_files)
            if (files[i] == test ".rs" || index(files[i], test "/") == 1)
                skip = 1
        if (!skip) {
            print lines[i]
            bad = 1
        }
    }
    exit bad
}
