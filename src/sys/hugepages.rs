//! Pages that the host has reserved for those who ask for them (linux/Documentation/admin-guide/mm/hugetlbpage.rst).
//! Key function: [`free`].

use std::path::Path;

/// Free pages of `kib` KiB each that nobody has been promised; `None` where the kernel or the processor has no such pages.
pub fn free(kib: u64) -> Option<u64> {
    free_in(Path::new("/sys/kernel/mm/hugepages"), kib)
}

fn free_in(root: &Path, kib: u64) -> Option<u64> {
    let read = |name: &str| -> Option<u64> {
        let path = root.join(format!("hugepages-{kib}kB")).join(name);
        std::fs::read_to_string(path).ok()?.trim().parse().ok()
    };
    Some(read("free_hugepages")?.saturating_sub(read("resv_hugepages")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn promised_pages_are_not_free() {
        let dir = tempfile::tempdir().unwrap();
        let pool = dir.path().join("hugepages-2048kB");
        std::fs::create_dir(&pool).unwrap();
        std::fs::write(pool.join("free_hugepages"), "7\n").unwrap();
        std::fs::write(pool.join("resv_hugepages"), "3\n").unwrap();
        assert_eq!(free_in(dir.path(), 2048), Some(4));
        assert_eq!(free_in(dir.path(), 1 << 20), None);
    }
}
