//! Layout of the file that keeps a console's past: the vmm writes it through a mapping, the daemon reads it at any time,
//! also after the vmm's end.
//!
//! ```text
//!   0      bytes ever written, u64 little-endian
//!   4096   the last 64 KiB: byte number n of the console stands at 4096 + n % 64 KiB
//! ```

/// Bytes of console output that are kept.
pub const DATA_LEN: usize = 64 << 10;
/// Offset of the data: a page, so that the header has one of its own.
pub const DATA_OFFSET: usize = 4096;
/// Length of the file.
pub const FILE_LEN: usize = DATA_OFFSET + DATA_LEN;

/// The kept output, oldest first. `None` if `file` is not [`FILE_LEN`] bytes long.
pub fn tail(file: &[u8]) -> Option<Vec<u8>> {
    let (header, data) = file.split_at_checked(DATA_OFFSET)?;
    let data: &[u8; DATA_LEN] = data.try_into().ok()?;
    let written = u64::from_le_bytes(*header.first_chunk()?);
    let at = usize::try_from(written % DATA_LEN as u64).ok()?;
    if written < DATA_LEN as u64 {
        return Some(data.get(..at)?.to_vec());
    }
    let (newest, oldest) = data.split_at_checked(at)?;
    Some([oldest, newest].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(written: u64, fill: impl Fn(usize) -> u8) -> Vec<u8> {
        let mut file = vec![0; FILE_LEN];
        file[..8].copy_from_slice(&written.to_le_bytes());
        for (at, byte) in file[DATA_OFFSET..].iter_mut().enumerate() {
            *byte = fill(at);
        }
        file
    }

    #[test]
    fn gives_what_was_written_so_far() {
        assert_eq!(tail(&file(3, |at| b"abc"[at % 3])).unwrap(), b"abc");
        assert_eq!(tail(&file(0, |_| 9)).unwrap(), b"");
    }

    #[test]
    fn gives_the_last_64_kib_oldest_first() {
        let got = tail(&file(DATA_LEN as u64 + 2, |at| if at < 2 { b'n' } else { b'o' })).unwrap();
        assert_eq!(got.len(), DATA_LEN);
        assert!(got.starts_with(b"o") && got.ends_with(b"onn"));
    }

    #[test]
    fn refuses_a_file_of_another_length() {
        assert!(tail(b"short").is_none());
    }
}
