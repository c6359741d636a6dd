//! Small files, read whole: never more of them than a stated bound, whatever stands at the path.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

/// Certificates, keys and bundles of authorities. A bundle of every public authority has 250 KiB.
pub const PEM_BYTES: u64 = 4 * 1024 * 1024;

/// Tokens and their like: they travel in a header, which servers bound far lower.
pub const TOKEN_BYTES: u64 = 64 * 1024;

/// As much as the limit allows, and no word of what is beyond.
pub fn read_start(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

pub fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let bytes = read_start(path, limit + 1)?;
    if bytes.len() as u64 > limit {
        let shown = match limit {
            0..1024 => format!("{limit} bytes"),
            _ => format!("{} KiB", limit / 1024),
        };
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("longer than {shown}, the bound for such a file"),
        ));
    }
    Ok(bytes)
}

pub fn read_text(path: &Path, limit: u64) -> io::Result<String> {
    String::from_utf8(read(path, limit)?)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "not UTF-8 text"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_up_to_the_bound_and_no_further() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        std::fs::write(&path, "12345").unwrap();
        assert_eq!(read_text(&path, 5).unwrap(), "12345");
        let error = read_text(&path, 4).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(
            error.to_string(),
            "longer than 4 bytes, the bound for such a file"
        );
        // A file without an end does not take the memory either.
        assert!(read(Path::new("/dev/zero"), 1024).is_err());
        std::fs::write(&path, [0xff]).unwrap();
        assert_eq!(read_text(&path, 4).unwrap_err().to_string(), "not UTF-8 text");
    }
}
