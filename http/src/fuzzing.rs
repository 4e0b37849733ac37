//! What `fuzz/` runs, and the replay of its seeds in `tests/`: only in builds with the feature `fuzzing`.

use axum::{extract::Query, http::Uri};
use muster_catalog::Name;

use crate::{
    ask::Ask,
    decode::{decode_check, decode_deregistration, decode_registration, decode_service, decode_ttl_update},
};

/// Reads the parameters of a request's query string, as every endpoint does.
pub fn query(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(uri) = format!("/v1/health/service/web?{text}").parse::<Uri>() else { return };
    let Ok(Query(pairs)) = Query::<Vec<(String, String)>>::try_from_uri(&uri) else { return };
    match Ask::new(uri.path().to_owned(), pairs) {
        Ok(ask) => drop((ask.flag("passing"), ask.find("tag").map(str::len), ask.wait)),
        Err(error) => assert!(!error.to_string().is_empty(), "an error without words"),
    }
}

/// Reads the body of a registration, an update or a deregistration; the first byte says of which.
pub fn registration(bytes: &[u8]) {
    let Some((kind, body)) = bytes.split_first() else { return };
    let refused = match kind % 5 {
        0 => decode_service(body, &Name::lookup("n1")).err().map(|error| error.to_string()),
        1 => decode_check(body).err().map(|error| error.to_string()),
        2 => decode_ttl_update(body).err().map(|error| error.to_string()),
        3 => decode_registration(body).err().map(|error| error.to_string()),
        _ => decode_deregistration(body).err().map(|error| error.to_string()),
    };
    assert!(refused.is_none_or(|error| !error.is_empty()), "an error without words");
}
