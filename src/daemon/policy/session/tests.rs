//! A host that lies: threads of this process play it.

use super::*;
use crate::model::{AdmitRequest, LimitUse, PluginDigest, Verdict};
use crate::sys::lane::{self, Server};
use crate::wire::policy::{Manifest, Note, NoteLevel};
use std::sync::Arc;
use std::thread;

use super::super::plugin::{About, Kept, Released};

/// A session whose host answers decisions as `answer` says.
fn session(mut answer: impl FnMut(&[u8]) -> Vec<u8> + Send + 'static) -> Session {
    let channel = || {
        let (lane, theirs) = lane::lane(Duration::ZERO).unwrap();
        let (artefacts, their_artefacts) = ArtefactSender::new().unwrap();
        (Channel { lane, artefacts, thread: "" }, theirs, their_artefacts)
    };
    let ((decisions, lane, artefacts), (background, ..)) = (channel(), channel());
    let mut server = Server::map(lane, Duration::ZERO).unwrap();
    thread::spawn(move || {
        let _open = artefacts;
        while let Some(question) = server.receive() {
            let _ = server.answer(&answer(&question));
        }
    });
    let end = HostEnd::Threads(Mutex::default(), Condvar::new());
    Session::new(decisions, background, end, 0, &Limits { deadline: Duration::from_millis(5), ..Limits::default() })
}

fn compiled() -> Compiled {
    let about = About {
        name: "p".into(),
        version: "1".into(),
        summary: String::new(),
        hooks: vec!["admit"],
        wants: vec![],
        digest: PluginDigest([1; 32]),
        size_bytes: 1,
    };
    let engine = wasmtime::Engine::new(&super::super::engine::config(&Limits::default())).unwrap();
    let empty = Artefact::compile(&engine, b"\0asm\x0d\0\x01\0").unwrap();
    Compiled::new(about, 7, (Kept::Memory(empty), 0), Arc::<Released>::default())
}

fn request() -> AdmitRequest {
    AdmitRequest {
        tenant: "blue".parse().unwrap(),
        vm: "web".parse().unwrap(),
        vcpus: 1,
        memory_mib: 1,
        disks: 0,
        nics: 0,
        in_use: LimitUse::default(),
        labels: None,
        images: None,
    }
}

fn spoken<T>(said: T) -> Spoken<T> {
    Spoken {
        said: Ok(said),
        fuel: 1,
        notes: vec![Note { level: NoteLevel::Info, line: "x".into() }],
        dropped: 0,
        kv: None,
        inventory: None,
        backtrace: Vec::new(),
    }
}

fn loaded() -> Vec<u8> {
    let manifest = Manifest { name: "p".into(), version: "1".into(), summary: String::new() };
    wire::encode(&Ok::<_, Refusal>(Loaded { hooks: vec!["admit".into()], wants: vec![], manifest: spoken(manifest) }))
}

#[test]
fn a_code_is_given_once_and_asked_often() {
    let mut loads = 0;
    let session = session(move |question| match wire::decode_request(question).unwrap().0 {
        Request::Load { code: 7 } => {
            loads += 1;
            assert_eq!(loads, 1);
            loaded()
        }
        Request::Ask { code: 7, .. } => wire::encode(&spoken(Verdict::Abstain)),
        other => panic!("{other:?}"),
    });
    let compiled = compiled();
    for _ in 0..3 {
        let spoken = session.decide(&compiled, &Arc::default(), View::default(), &request()).unwrap();
        assert_eq!((spoken.said, spoken.fuel), (Ok(Verdict::Abstain), 1));
    }
    assert!(!session.is_condemned());
    session.condemn();
}

#[test]
fn what_is_no_answer_condemns_the_host() {
    let abstain = wire::encode(&spoken(Verdict::Abstain));
    let longer = [&abstain[..], b"\0"].concat();
    for nonsense in [Vec::new(), b"nonsense".to_vec(), abstain[..abstain.len() - 1].to_vec(), longer] {
        let session = session(move |question| match wire::decode_request(question).unwrap().0 {
            Request::Load { .. } => loaded(),
            _ => nonsense.clone(),
        });
        let compiled = compiled();
        assert_eq!(
            session.decide(&compiled, &Arc::default(), View::default(), &request()).unwrap_err(),
            PolicyFault::HostLost
        );
        assert!(session.is_condemned());
        // Nothing waits for a host that is condemned.
        assert_eq!(
            session.decide(&compiled, &Arc::default(), View::default(), &request()).unwrap_err(),
            PolicyFault::HostLost
        );
        assert_eq!(session.wait(), End::Unknown);
    }
}

#[test]
fn a_host_that_refuses_a_code_is_not_lost() {
    let refusal = wire::encode(&Err::<Loaded, _>(Refusal::Unusable("no room".into())));
    let session = session(move |_| refusal.clone());
    let fault = session.decide(&compiled(), &Arc::default(), View::default(), &request()).unwrap_err();
    assert!(matches!(fault, PolicyFault::Unavailable(cause) if cause.contains("no room")));
    assert!(!session.is_condemned());
    session.condemn();
}
