//! Values that people write: memory sizes, durations, disks, NICs, settings. Pure; each error says what to write.

use std::fmt;
use std::time::Duration;

use crate::model::CpuList;

/// Memory in MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MemoryMib(pub(crate) u64);

impl fmt::Display for MemoryMib {
    /// In the largest unit that keeps it whole.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            mib if mib > 0 && mib % (1 << 20) == 0 => write!(f, "{}TiB", mib >> 20),
            mib if mib > 0 && mib % (1 << 10) == 0 => write!(f, "{}GiB", mib >> 10),
            mib => write!(f, "{mib}MiB"),
        }
    }
}

/// Reads `256M`, `1G`, `5GiB`, `2T`: whole numbers, powers of 1024. A number without a unit is refused, because half
/// of all tools take it for bytes and the other half for MiB; so are MB and GB, which are powers of 1000.
pub(crate) fn parse_memory(text: &str) -> Result<MemoryMib, String> {
    let (number, unit) = split_unit(text);
    let number: u64 = number.parse().map_err(|_| format!("{text:?} is not a size: write 256M, 1G or 5GiB"))?;
    let shift = match unit.to_ascii_lowercase().as_str() {
        "m" | "mib" => 0,
        "g" | "gib" => 10,
        "t" | "tib" => 20,
        "" => return Err(format!("the unit is missing: write {number}M for MiB, or {number}G for GiB")),
        "mb" | "gb" | "tb" => {
            let letter = &unit[..1];
            return Err(format!("{unit} is a power of 1000: write {number}{letter} or {number}{letter}iB"));
        }
        _ => return Err(format!("{unit:?} is not a unit of memory: write M, G or T (or MiB, GiB, TiB)")),
    };
    number.checked_mul(1 << shift).map(MemoryMib).ok_or_else(|| format!("{text} is more memory than exists"))
}

/// Reads `512K`, `10M`, `20GiB`: bytes, powers of 1024; a number without a unit is refused, as for memory.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    let (number, unit) = split_unit(text);
    match unit.to_ascii_lowercase().as_str() {
        "k" | "kib" => {
            let number: Option<u64> = number.parse().ok();
            let bytes = number.and_then(|number| number.checked_mul(1 << 10));
            bytes.ok_or_else(|| format!("{text:?} is not a size: write 512K, 10M or 20G"))
        }
        _ => {
            let MemoryMib(mib) = parse_memory(text)?;
            mib.checked_mul(1 << 20).ok_or_else(|| format!("{text} is more than 64 bits count"))
        }
    }
}

/// Reads `500ms`, `30s`, `2m`, `1h`, or `0`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split_unit(text);
    let number: u64 = number.parse().map_err(|_| format!("{text:?} is not a duration: write 500ms, 30s or 2m"))?;
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "" if number == 0 => 0,
        "" => return Err(format!("the unit is missing: write {number}s for seconds")),
        _ => return Err(format!("{unit:?} is not a unit of time: write ms, s, m or h")),
    };
    number.checked_mul(unit_ms).map(Duration::from_millis).ok_or_else(|| format!("{text} is too long"))
}

/// Reads a list of the host's CPUs, `0-1,4`, and gives it in its shortest form.
pub(crate) fn parse_cpus(text: &str) -> Result<String, String> {
    text.parse::<CpuList>().map(|list| list.to_string()).map_err(|error| error.to_string())
}

/// A topology as written: `sockets=1,cores=2,threads=2`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TopologyArg {
    pub(crate) sockets: u32,
    /// Per socket.
    pub(crate) cores: u32,
    /// Per core.
    pub(crate) threads: u32,
}

/// Reads `sockets=1,cores=2,threads=2`, in any order; all three are there, or nobody would know which one is 1.
pub(crate) fn parse_topology(text: &str) -> Result<TopologyArg, String> {
    const FORM: &str = "write sockets=1,cores=2,threads=2";
    let (mut sockets, mut cores, mut threads) = (None, None, None);
    for word in text.split(',') {
        let (slot, value) = match word.split_once('=') {
            Some(("sockets", value)) => (&mut sockets, value),
            Some(("cores", value)) => (&mut cores, value),
            Some(("threads", value)) => (&mut threads, value),
            _ => return Err(format!("{word:?} is not a part of a topology: {FORM}")),
        };
        let value = value.parse().map_err(|_| format!("{word:?} has no number: {FORM}"))?;
        if slot.replace(value).is_some() {
            return Err(format!("{word:?} is repeated: {FORM}"));
        }
    }
    match (sockets, cores, threads) {
        (Some(sockets), Some(cores), Some(threads)) => Ok(TopologyArg { sockets, cores, threads }),
        _ => Err(format!("{text:?} lacks a part: {FORM}")),
    }
}

/// A disk as written: `id=root,volume=hello.img,ro`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DiskArg {
    /// Name of the device.
    pub(crate) id: String,
    /// Image below the tenant's volumes directory.
    pub(crate) volume: String,
    /// The guest may only read.
    pub(crate) is_read_only: bool,
    /// Past the host's page cache.
    pub(crate) is_direct: bool,
    /// 0: the node's choice.
    pub(crate) queues: u32,
    /// What it may move.
    pub(crate) rates: Rates,
}

/// Per second; 0: no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Rates {
    /// Bytes.
    pub(crate) bandwidth: u64,
    /// Requests, or frames.
    pub(crate) iops: u64,
}

impl Rates {
    /// Reads what was written, if anything was.
    fn parse(bandwidth: Option<String>, iops: Option<String>) -> Result<Self, String> {
        let bandwidth = bandwidth.map(|text| parse_bytes(&text)).transpose()?.unwrap_or(0);
        let count = |text: String| text.parse().map_err(|_| format!("{text:?} is no number of operations per second"));
        Ok(Self { bandwidth, iops: iops.map(count).transpose()?.unwrap_or(0) })
    }
}

/// Reads `id=root,volume=hello.img[,ro|rw][,direct][,queues=N][,bandwidth=SIZE][,iops=N]`.
pub(crate) fn parse_disk(text: &str) -> Result<DiskArg, String> {
    const FORM: &str = "write id=root,volume=hello.img and ,ro if the guest may only read (further: direct, queues=4, bandwidth=10M, iops=500)";
    let (mut id, mut volume, mut access, mut direct, mut queues) = (None, None, None, None, None);
    let (mut bandwidth, mut iops) = (None, None);
    for word in text.split(',') {
        let (slot, value) = match word.split_once('=') {
            Some(("id", value)) => (&mut id, value),
            Some(("volume", value)) => (&mut volume, value),
            Some(("queues", value)) => (&mut queues, value),
            Some(("bandwidth", value)) => (&mut bandwidth, value),
            Some(("iops", value)) => (&mut iops, value),
            None if matches!(word, "ro" | "rw") => (&mut access, word),
            None if word == "direct" => (&mut direct, word),
            _ => return Err(format!("{word:?} is not a property of a disk: {FORM}")),
        };
        if value.is_empty() || slot.replace(value.to_owned()).is_some() {
            return Err(format!("{word:?} is empty or repeated: {FORM}"));
        }
    }
    let queues = parse_queues(queues)?;
    let rates = Rates::parse(bandwidth, iops)?;
    match (id, volume) {
        (Some(id), Some(volume)) => {
            let is_read_only = access.as_deref() == Some("ro");
            Ok(DiskArg { id, volume, is_read_only, is_direct: direct.is_some(), queues, rates })
        }
        (None, _) => Err(format!("id is missing: {FORM}")),
        (_, None) => Err(format!("volume is missing: {FORM}")),
    }
}

/// A number of queues, if one was written.
fn parse_queues(text: Option<String>) -> Result<u32, String> {
    let Some(text) = text else { return Ok(0) };
    match text.parse() {
        Ok(queues) if queues > 0 => Ok(queues),
        _ => Err(format!("{text:?} is no number of queues: write queues=2")),
    }
}

/// A network interface as written: `id=eth0`, or `id=net0,sriov,vlan=100`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NicArg {
    /// Name of the device.
    pub(crate) id: String,
    /// A virtual function, with what is asked of it.
    pub(crate) sriov: Option<SriovArg>,
    /// What one on a tap may move in each direction.
    pub(crate) rates: Rates,
    /// Pairs of queues of one on a tap; 0: the node's choice.
    pub(crate) queues: u32,
    /// The host's kernel is to move the frames of one on a tap.
    pub(crate) has_vhost: bool,
}

/// What is asked of a virtual function.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct SriovArg {
    /// The guest's address; empty: policy's or the node's choice.
    pub(crate) mac: String,
    /// 0: none.
    pub(crate) vlan: u32,
}

/// Reads `id=eth0[,queues=N][,bandwidth=SIZE][,iops=N][,vhost=on]` or `[id=ID,]sriov[,mac=MAC][,vlan=VLAN]`; a virtual function's id is `sriov` if none is written.
pub(crate) fn parse_nic(text: &str) -> Result<NicArg, String> {
    const FORM: &str = "write id=eth0, or sriov for a virtual function: id=net0,sriov,mac=02:00:00:00:00:01,vlan=100";
    let (mut id, mut mac, mut vlan, mut kind) = (None, None, None, None);
    let (mut bandwidth, mut iops, mut queues, mut vhost) = (None, None, None, None);
    for word in text.split(',') {
        let (slot, value) = match word.split_once('=') {
            Some(("id", value)) => (&mut id, value),
            Some(("vhost", value)) => (&mut vhost, value),
            Some(("mac", value)) => (&mut mac, value),
            Some(("vlan", value)) => (&mut vlan, value),
            Some(("queues", value)) => (&mut queues, value),
            Some(("bandwidth", value)) => (&mut bandwidth, value),
            Some(("iops", value)) => (&mut iops, value),
            None if word == "sriov" => (&mut kind, word),
            _ => return Err(format!("{word:?} is not a property of a network interface: {FORM}")),
        };
        if value.is_empty() || value.contains('=') || slot.replace(value.to_owned()).is_some() {
            return Err(format!("{word:?} is empty, repeated or malformed: {FORM}"));
        }
    }
    let vlan = vlan.map(|vlan| match vlan.parse() {
        Ok(vlan) if (1..4095).contains(&vlan) => Ok(vlan),
        _ => Err(format!("{vlan:?} is no VLAN: write a number from 1 to 4094")),
    });
    let (vlan, mac) = (vlan.transpose()?, mac.unwrap_or_default());
    let (rates, queues) = (Rates::parse(bandwidth, iops)?, parse_queues(queues)?);
    let has_vhost = match vhost.as_deref() {
        None | Some("off") => false,
        Some("on") => true,
        Some(other) => return Err(format!("vhost={other} is neither on nor off: {FORM}")),
    };
    match (kind, id) {
        (Some(kind), id) => {
            let sriov = Some(SriovArg { mac, vlan: vlan.unwrap_or(0) });
            Ok(NicArg { id: id.unwrap_or(kind), sriov, rates, queues, has_vhost })
        }
        (None, _) if vlan.is_some() || !mac.is_empty() => Err(format!("mac and vlan go with sriov: {FORM}")),
        (None, Some(id)) => Ok(NicArg { id, sriov: None, rates, queues, has_vhost }),
        (None, None) => Err(format!("id is missing: {FORM}")),
    }
}

/// An NVMe device as written: `id=data,size=64M`, or `id=disk,controller`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NvmeArg {
    /// Name of the device.
    pub(crate) id: String,
    /// Least bytes of its namespace; `None`: a whole controller.
    pub(crate) min_bytes: Option<u64>,
}

/// Reads `id=data,size=64M` or `id=disk,controller`.
pub(crate) fn parse_nvme(text: &str) -> Result<NvmeArg, String> {
    const FORM: &str = "write id=data,size=64M for a namespace, or id=disk,controller for a whole controller";
    let (mut id, mut size, mut whole) = (None, None, None);
    for word in text.split(',') {
        let (slot, value) = match word.split_once('=') {
            Some(("id", value)) => (&mut id, value),
            Some(("size", value)) => (&mut size, value),
            None if word == "controller" => (&mut whole, word),
            _ => return Err(format!("{word:?} is not a property of an NVMe device: {FORM}")),
        };
        if value.is_empty() || value.contains('=') || slot.replace(value.to_owned()).is_some() {
            return Err(format!("{word:?} is empty, repeated or malformed: {FORM}"));
        }
    }
    let Some(id) = id else { return Err(format!("id is missing: {FORM}")) };
    let min_bytes = size.map(|size| {
        let MemoryMib(mib) = parse_memory(&size)?;
        mib.checked_mul(1 << 20).ok_or_else(|| format!("{size} is more than exists"))
    });
    match (min_bytes.transpose()?, whole) {
        (Some(_), Some(_)) => Err(format!("size and controller exclude each other: {FORM}")),
        (None, None) => Err(format!("size or controller is missing: {FORM}")),
        (min_bytes, _) => Ok(NvmeArg { id, min_bytes }),
    }
}

/// Reads `key=value`; the value may hold further `=`.
pub(crate) fn parse_setting(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is not a setting: write KEY=VALUE")),
    }
}

/// `team=web`. What keys and values may be is the node's to say.
pub(crate) fn parse_label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is not a label: write KEY=VALUE")),
    }
}

/// `10%` or `10`, of 1 to 99.
pub(crate) fn parse_percent(text: &str) -> Result<u32, String> {
    let percent = text.strip_suffix('%').unwrap_or(text).parse().ok();
    percent.filter(|percent| (1..=99).contains(percent)).ok_or_else(|| format!("{text:?} is no share: write 1% to 99%"))
}

/// The digits in front, and the rest.
fn split_unit(text: &str) -> (&str, &str) {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    text.split_at(digits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_a_topology_whole() {
        let topology = TopologyArg { sockets: 1, cores: 2, threads: 4 };
        assert_eq!(parse_topology("cores=2,threads=4,sockets=1"), Ok(topology));
        for text in ["", "cores=2", "cores=2,cores=2,threads=1,sockets=1", "cores=x,threads=1,sockets=1", "dies=1"] {
            assert!(parse_topology(text).is_err(), "{text}");
        }
    }

    #[test]
    fn reads_sizes_as_powers_of_1024() {
        for (text, mib) in [("256M", 256), ("1G", 1024), ("5GiB", 5120), ("512mib", 512), ("2T", 2 << 20), ("0M", 0)] {
            assert_eq!(parse_memory(text), Ok(MemoryMib(mib)), "{text}");
        }
    }

    #[test]
    fn refuses_ambiguous_sizes_and_says_what_to_write() {
        assert!(parse_memory("256").unwrap_err().contains("write 256M"));
        assert!(parse_memory("1GB").unwrap_err().contains("write 1G or 1GiB"));
        for text in ["", "M", "-1M", "1.5G", "1 G", "256K", "99999999999999999999M", "99999999999999999T", "1é"] {
            assert!(parse_memory(text).is_err(), "{text}");
        }
    }

    #[test]
    fn reads_bytes_with_their_unit() {
        for (text, bytes) in [("1K", 1 << 10), ("512KiB", 512 << 10), ("10M", 10 << 20), ("20G", 20 << 30)] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "10", "K", "10KB", "1.5M", "-1K", "99999999999999999999K", "17592186044416G"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn reads_durations_with_their_unit() {
        for (text, ms) in [("500ms", 500), ("30s", 30_000), ("2m", 120_000), ("1h", 3_600_000), ("0", 0), ("0s", 0)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        assert!(parse_duration("30").unwrap_err().contains("write 30s"));
        for text in ["", "s", "-3s", "3 s", "3d", "99999999999999999999s", "9999999999999999999h"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn reads_disks_and_names_what_is_missing() {
        let disk = |is_read_only| DiskArg {
            id: "root".into(),
            volume: "a/b.img".into(),
            is_read_only,
            is_direct: false,
            queues: 0,
            rates: Rates::default(),
        };
        assert_eq!(parse_disk("id=root,volume=a/b.img,ro"), Ok(disk(true)));
        assert_eq!(parse_disk("volume=a/b.img,id=root"), Ok(disk(false)));
        let many = parse_disk("id=root,volume=a/b.img,ro,direct,queues=4");
        assert_eq!(many, Ok(DiskArg { is_direct: true, queues: 4, ..disk(true) }));
        let limited = parse_disk("id=root,volume=a/b.img,bandwidth=10M,iops=500");
        let rates = Rates { bandwidth: 10 << 20, iops: 500 };
        assert_eq!(limited, Ok(DiskArg { rates, ..disk(false) }));
        assert!(parse_disk("volume=x").unwrap_err().starts_with("id is missing"));
        assert!(parse_disk("id=x").unwrap_err().starts_with("volume is missing"));
        for text in [
            "",
            "root",
            "id=a,id=b,volume=x",
            "id=,volume=x",
            "id=a,volume=x,size=3",
            "id=a,volume=x,ro,rw",
            "id=a,volume=x,queues=0",
            "id=a,volume=x,queues=x",
            "id=a,volume=x,direct=1",
        ] {
            assert!(parse_disk(text).is_err(), "{text}");
        }
    }

    #[test]
    fn reads_nvme_devices() {
        let nvme = |id: &str, min_bytes| Ok(NvmeArg { id: id.into(), min_bytes });
        assert_eq!(parse_nvme("id=data,size=64M"), nvme("data", Some(64 << 20)));
        assert_eq!(parse_nvme("size=1TiB,id=a"), nvme("a", Some(1 << 40)));
        assert_eq!(parse_nvme("id=disk,controller"), nvme("disk", None));
        for text in ["", "id=a", "size=1M", "id=a,size=64", "id=a,size=1M,controller", "id=a,id=b,size=1M", "id=a,ro"] {
            assert!(parse_nvme(text).is_err(), "{text}");
        }
        assert!(parse_nvme("id=a,size=9999999999T").is_err());
    }

    #[test]
    fn reads_nics_and_settings() {
        let nic =
            |id: &str, sriov| Ok(NicArg { id: id.into(), sriov, rates: Rates::default(), queues: 0, has_vhost: false });
        let sriov = |mac: &str, vlan| Some(SriovArg { mac: mac.into(), vlan });
        assert_eq!(parse_nic("id=eth0"), nic("eth0", None));
        assert_eq!(parse_nic("sriov"), nic("sriov", sriov("", 0)));
        assert_eq!(parse_nic("sriov,vlan=7"), nic("sriov", sriov("", 7)));
        assert_eq!(parse_nic("id=a,sriov,mac=02:00:00:00:00:01"), nic("a", sriov("02:00:00:00:00:01", 0)));
        for text in
            ["eth0", "", "id=", "id=a,mac=x", "mac=1", "sriov,sriov", "sriov,vlan=0", "sriov,vlan=4095", "sriov,"]
        {
            assert!(parse_nic(text).is_err(), "{text}");
        }
        assert_eq!(parse_nic("id=a,vhost=on").map(|nic| nic.has_vhost), Ok(true));
        assert_eq!(parse_nic("id=a,vhost=off"), nic("a", None));
        for text in ["id=a,vhost", "id=a,vhost=", "id=a,vhost=yes", "id=a,vhost=on,vhost=on"] {
            assert!(parse_nic(text).is_err(), "{text}");
        }
        assert!(parse_nic("id=a,vlan=3").unwrap_err().starts_with("mac and vlan go with sriov"));
        assert_eq!(parse_setting("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert_eq!(parse_setting("a="), Ok(("a".into(), String::new())));
        assert_eq!(parse_label("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert!(parse_label("a").is_err() && parse_label("=b").is_err());
        assert!(parse_setting("=b").is_err() && parse_setting("a").is_err());
        assert_eq!((parse_percent("10%"), parse_percent("99")), (Ok(10), Ok(99)));
        assert!(["", "%", "0%", "100%", "-1%", "1.5%", "10 %"].iter().all(|text| parse_percent(text).is_err()));
    }

    proptest! {
        #[test]
        fn sizes_round_trip(mib in 0u64..1 << 43) {
            prop_assert_eq!(parse_memory(&MemoryMib(mib).to_string()), Ok(MemoryMib(mib)));
        }

        #[test]
        fn never_panics_on_what_people_write(text in "([0-9]{0,22}(\\PC{0,4}|[mgtMGT]i?[bB]?|m?s|h)|\\PC{0,20})") {
            let _ = (parse_memory(&text), parse_duration(&text), parse_setting(&text), parse_nic(&text), parse_nvme(&text));
        }

        #[test]
        fn never_panics_on_devices(text in "(id=[a-zé]{0,1}|volume=[a-z=]{0,2}|ro|rw|,|size)(,(id=[a-z]{0,1}|volume=[a-z]{0,2}|ro|=)){0,3}") {
            if let Ok(disk) = parse_disk(&text) {
                prop_assert!(!disk.id.is_empty() && !disk.volume.is_empty());
            }
        }
    }
}
