//! Every kind of message comes back as it was; what is none is refused.

use super::*;
use crate::model::{
    AdmitRequest, ImagePath, KvRest, KvValue, Labels, LastTenant, LimitUse, Mark, NvmeVerdict, Patch, SelectVfRequest,
    Verdict, VfCandidate, VfRanking, VfSetting, VfVerdict, VfWish, VlanId, VmImage,
};
use proptest::prelude::*;
use std::time::Duration;

fn spoken<T>(said: Result<T, PolicyFault>) -> Spoken<T> {
    let notes = vec![Note { level: NoteLevel::Warn, line: "a line".into() }];
    Spoken { said, fuel: u64::MAX, notes, dropped: 3, kv: None, inventory: None, backtrace: vec!["f at 0x1".into()] }
}

fn comes_back<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(message: &T) {
    let bytes = encode(message);
    assert_eq!(decode::<T>(&bytes).as_ref(), Ok(message));
    for len in 0..bytes.len() {
        assert_eq!(decode::<T>(&bytes[..len]), Err(Malformed), "cut at {len}");
    }
    assert_eq!(decode::<T>(&[&bytes[..], &[0]].concat()), Err(Malformed), "one byte more");
}

#[test]
fn what_the_host_says_comes_back_whole_or_not_at_all() {
    comes_back(&spoken(Ok(Verdict::Allow(vec![Patch::CapVcpus(3), Patch::CapMemoryMib(1 << 40)]))));
    comes_back(&spoken::<Verdict>(Err(PolicyFault::Deadline(Duration::from_millis(50)))));
    comes_back(&spoken::<Verdict>(Err(PolicyFault::Trap("unreachable".into()))));
    comes_back(&spoken(Ok(NvmeVerdict::Abstain)));
    let wrote = [("k".to_owned(), Some("v".into())), ("gone".to_owned(), None)].into();
    let kv = Some(KvSpoken { touched: vec!["k".into()], wrote });
    comes_back(&Spoken { kv, ..spoken(Ok(NvmeVerdict::Abstain)) });
    let inventory = Some(InventorySpoken { looked: vec!["web".parse().unwrap()], is_listed: true });
    comes_back(&Spoken { inventory, ..spoken(Ok(NvmeVerdict::Abstain)) });
    comes_back(&spoken(Ok(VfVerdict::Rank(VfRanking {
        marks: vec![Mark::Score(i32::MIN), Mark::Reject(usize::MAX)],
        reasons: vec![("a.b".into(), "why".into())],
        settings: vec![VfSetting::Vlan(VlanId::new(7).unwrap()), VfSetting::Trust(true)],
    }))));
    let manifest = Manifest { name: "n".into(), version: "1".into(), summary: String::new() };
    comes_back(&Ok::<_, Refusal>(Loaded {
        hooks: vec!["admit".into()],
        wants: vec![Grant::Kv, Grant::Inventory],
        manifest: spoken(Ok(manifest)),
    }));
    comes_back(&Err::<Loaded, _>(Refusal::WrongVersion("ostler:policy/x@0.2.0".into())));
    comes_back(&Err::<Loaded, _>(Refusal::UndeclaredImports(vec!["wasi:x/y".into()])));
    comes_back(&Hello::Ready(7));
}

#[test]
fn a_question_follows_its_request() {
    let settings = Settings::from([("k".to_owned(), "v".to_owned())]);
    let known = [("k".to_owned(), Some(KvValue(vec![0xff]))), ("none".to_owned(), None)].into();
    let kv = KvView { moment_s: 7, known, rest: Some(KvRest { keys: 1, bytes: 9 }) };
    let kv = Some(Cow::Borrowed(&kv));
    let vms = [("web".parse().unwrap(), None)].into();
    let inventory = Some(Cow::Owned(InventoryView { revision: 3, vms, rest: 7, ..InventoryView::default() }));
    let request = Request::Ask { code: 9, settings: Cow::Borrowed(&settings), kv, inventory, hook: "admit".into() };
    let question = AdmitRequest {
        tenant: "blue".parse().unwrap(),
        vm: "web".parse().unwrap(),
        vcpus: 4,
        memory_mib: 1024,
        disks: 1,
        nics: 1,
        in_use: LimitUse::default(),
        labels: None,
        images: None,
    };
    // What a question does not say has its place all the same: nothing is named here.
    let path = ImagePath::new("path", "linux/vmlinux").unwrap();
    let labels = Labels::new([("team".to_owned(), "web".to_owned())].into()).unwrap();
    let says = AdmitRequest {
        labels: Some(labels),
        images: Some(vec![VmImage::Kernel(path.clone()), VmImage::Disk { id: "root".parse().unwrap(), volume: path }]),
        ..question.clone()
    };
    for question in [question, says] {
        let bytes = encode_question(&request, &question);
        let (decoded, rest) = decode_request(&bytes).unwrap();
        assert_eq!((&decoded, decode(rest)), (&request, Ok(question)));
    }
}

#[test]
fn a_value_that_the_model_does_not_have_is_no_message() {
    // As a VLAN the model knows 1 to 4094; on the wire it is a number like any other.
    let bytes = encode(&spoken(Ok(VfVerdict::Rank(VfRanking {
        marks: Vec::new(),
        reasons: Vec::new(),
        settings: vec![VfSetting::Vlan(VlanId::new(0x7f).unwrap())],
    }))));
    let at = bytes.iter().position(|byte| *byte == 0x7f).unwrap();
    let mut forged = bytes;
    forged[at] = 0;
    assert_eq!(decode::<Spoken<VfVerdict>>(&forged), Err(Malformed));
}

proptest! {
    #[test]
    fn nothing_panics_and_what_decodes_is_written_the_same_again(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(message) = decode::<Spoken<VfVerdict>>(&bytes) {
            prop_assert_eq!(decode::<Spoken<VfVerdict>>(&encode(&message)), Ok(message));
        }
        if let Ok((request, _)) = decode_request(&bytes) {
            let again = encode(&request);
            prop_assert_eq!(decode_request(&again).unwrap().0, request);
        }
        let _ = (decode::<Result<Loaded, Refusal>>(&bytes), decode::<Hello>(&bytes));
    }

    #[test]
    fn every_table_of_candidates_comes_back(
        rows in prop::collection::vec((any::<u16>(), any::<u16>(), 0..3u8), 0..300),
        mac in any::<bool>(),
    ) {
        let candidates = rows.iter().map(|(pf, index, last)| VfCandidate {
            address: "0000:03:10.0".parse().unwrap(),
            pf: usize::from(*pf),
            index: *index,
            last_tenant: [LastTenant::Nobody, LastTenant::Same, LastTenant::Other][usize::from(*last)],
        });
        let question = SelectVfRequest {
            tenant: "blue".parse().unwrap(),
            vm: "web".parse().unwrap(),
            vcpus: 1,
            memory_mib: 1,
            disks: 0,
            nics: 1,
            nic: "eth0".parse().unwrap(),
            wish: VfWish { mac: mac.then(|| "02:00:00:00:00:01".parse().unwrap()), vlan: VlanId::new(9) },
            pfs: Vec::new(),
            candidates: candidates.collect(),
        };
        prop_assert_eq!(decode(&encode(&question)), Ok(question));
    }
}
