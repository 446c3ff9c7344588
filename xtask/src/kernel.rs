//! Takes the uncompressed kernel (an ELF file, for PVH and 64-bit ELF boot) out of a distribution's bzImage.
//!
//! The payload's place is in the setup header (`linux/Documentation/arch/x86/boot.rst`): sectors of set-up code at
//! 0x1f1, payload offset at 0x248 and length at 0x24c, both relative to the protected-mode code. The payload ends with
//! four bytes that give the unpacked size.

use anyhow::{Context, Result, bail};
use std::io::Read;

const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
const LZ4_LEGACY: &[u8] = &[0x02, 0x21, 0x4c, 0x18];
const XZ: &[u8] = &[0xfd, b'7', b'z', b'X', b'Z', 0];
/// A block of the legacy lz4 frame unpacks to this many bytes at most.
const LZ4_BLOCK: usize = 8 << 20;

/// Unpacks the ELF kernel in `image`.
pub(crate) fn vmlinux(image: &[u8]) -> Result<Vec<u8>> {
    if image.get(0x202..0x206) != Some(b"HdrS") {
        bail!("not a bzImage: it has no setup header");
    }
    let sectors = match image[0x1f1] {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let start = (sectors + 1) * 512 + word(image, 0x248)?;
    let end = start + word(image, 0x24c)?;
    let payload = image.get(start..end.saturating_sub(4)).context("the bzImage ends before its payload")?;
    let unpacked_size = word(image, end - 4)?;
    let kernel = unpack(payload)?;
    if !kernel.starts_with(b"\x7fELF") {
        bail!("the bzImage's payload is not an ELF file");
    }
    if kernel.len() != unpacked_size {
        bail!("the bzImage's payload has {} bytes where {unpacked_size} were promised", kernel.len());
    }
    Ok(kernel)
}

/// Unpacks an xz file, as kernel modules are.
pub(crate) fn unxz(packed: &[u8]) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    lzma_rust2::XzReader::new(packed, true).read_to_end(&mut bytes).context("broken xz data")?;
    Ok(bytes)
}

fn unpack(payload: &[u8]) -> Result<Vec<u8>> {
    if payload.starts_with(ZSTD) {
        let mut bytes = Vec::new();
        let mut decoder = ruzstd::decoding::StreamingDecoder::new(payload).context("broken zstd data")?;
        decoder.read_to_end(&mut bytes).context("broken zstd data")?;
        return Ok(bytes);
    }
    if let Some(blocks) = payload.strip_prefix(LZ4_LEGACY) {
        return unlz4(blocks);
    }
    if payload.starts_with(XZ) {
        return unxz(payload);
    }
    bail!("the bzImage is packed in a way that is not known here: {:02x?}", &payload[..payload.len().min(8)])
}

/// Unpacks the blocks of a legacy lz4 frame: each is its length, then its bytes.
fn unlz4(mut blocks: &[u8]) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    while let Some((length, rest)) = blocks.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length) as usize;
        let (block, rest) = rest.split_at_checked(length).context("an lz4 block is cut short")?;
        bytes.extend(lz4_flex::block::decompress(block, LZ4_BLOCK).context("broken lz4 data")?);
        blocks = rest;
    }
    Ok(bytes)
}

fn word(image: &[u8], at: usize) -> Result<usize> {
    let bytes = image.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
    Ok(u32::from_le_bytes(bytes.context("the bzImage is cut short")?) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_is_no_kernel() {
        assert!(vmlinux(b"").is_err());
        assert!(vmlinux(&[0; 4096]).is_err());
        let mut cut = vec![0; 0x300];
        cut[0x202..0x206].copy_from_slice(b"HdrS");
        cut[0x24c] = 0xff;
        assert!(vmlinux(&cut).unwrap_err().to_string().contains("ends before its payload"));
    }

    #[test]
    fn unpacks_every_lz4_block() {
        let mut frame = Vec::new();
        for part in [&b"one "[..], b"two"] {
            let block = lz4_flex::block::compress(part);
            frame.extend(u32::try_from(block.len()).unwrap().to_le_bytes());
            frame.extend(block);
        }
        assert_eq!(unlz4(&frame).unwrap(), b"one two");
        assert!(unlz4(&frame[..frame.len() - 1]).is_err());
    }
}
