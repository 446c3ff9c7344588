//! What a policy host may say to the daemon, and the daemon to it: what decodes is written the same again.
#![no_main]

use std::fmt::Debug;

use libfuzzer_sys::fuzz_target;
use ostler::model::{NvmeVerdict, ObserveVerdict, PlaceVerdict, SelectVfRequest, Verdict, VfVerdict};
use ostler::wire::policy::{Hello, Loaded, Refusal, Spoken, decode, decode_request, encode};
use serde::Serialize;
use serde::de::DeserializeOwned;

fn comes_back<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) {
    if let Ok(message) = decode::<T>(bytes) {
        assert_eq!(decode::<T>(&encode(&message)).as_ref(), Ok(&message));
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((kind, bytes)) = input.split_first() else { return };
    match kind % 10 {
        0 => comes_back::<Spoken<Verdict>>(bytes),
        1 => comes_back::<Spoken<VfVerdict>>(bytes),
        2 => comes_back::<Spoken<NvmeVerdict>>(bytes),
        3 => comes_back::<Result<Loaded, Refusal>>(bytes),
        4 => comes_back::<Spoken<Vec<(String, String)>>>(bytes),
        5 => comes_back::<Hello>(bytes),
        6 => comes_back::<SelectVfRequest>(bytes),
        7 => comes_back::<Spoken<PlaceVerdict>>(bytes),
        8 => comes_back::<Spoken<ObserveVerdict>>(bytes),
        _ => {
            if let Ok((request, _)) = decode_request(bytes) {
                assert_eq!(decode_request(&encode(&request)).map(|(request, _)| request), Ok(request));
            }
        }
    }
});
