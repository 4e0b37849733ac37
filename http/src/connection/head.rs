//! The head of an answer as bytes, as hyper writes it: pure.

use std::{io::Write as _, time::SystemTime};

use axum::http::{header, response};

/// About what a field takes; more makes the buffer grow.
const FIELD_BYTES: usize = 40;

/// The status line and the fields, with the length of the body, the date, and whether the connection ends with it.
pub(crate) fn encode(parts: &response::Parts, length: usize, last: bool, now: SystemTime) -> Vec<u8> {
    let mut head = Vec::with_capacity((parts.headers.len() + 4) * FIELD_BYTES);
    let reason = parts.status.canonical_reason().unwrap_or("<none>");
    // Writing to a Vec does not fail.
    let _ = write!(head, "HTTP/1.1 {} {reason}\r\n", parts.status.as_str());
    for (name, value) in &parts.headers {
        write_title_case(&mut head, name.as_str().as_bytes());
        head.extend_from_slice(b": ");
        head.extend_from_slice(value.as_bytes());
        head.extend_from_slice(b"\r\n");
    }
    if !parts.headers.contains_key(header::CONTENT_LENGTH) {
        let _ = write!(head, "Content-Length: {length}\r\n");
    }
    if last {
        head.extend_from_slice(b"Connection: close\r\n");
    }
    if !parts.headers.contains_key(header::DATE) {
        let _ = write!(head, "Date: {}\r\n", httpdate::HttpDate::from(now));
    }
    head.extend_from_slice(b"\r\n");
    head
}

/// `X-Consul-Index`, as clients of the dialect print it.
fn write_title_case(head: &mut Vec<u8>, name: &[u8]) {
    let mut before = b'-';
    head.extend(name.iter().map(|byte| {
        let shown = if before == b'-' { byte.to_ascii_uppercase() } else { *byte };
        before = *byte;
        shown
    }));
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use axum::http::Response;

    use super::*;

    #[test]
    fn a_head_says_how_long_the_body_is_when_it_was_made_and_whether_it_is_the_last() {
        let builder = Response::builder().status(404).header("x-consul-index", "7").header("etag", "-a-b");
        let (parts, ()) = builder.body(()).unwrap().into_parts();
        let text = |last| String::from_utf8(encode(&parts, 12, last, UNIX_EPOCH)).unwrap();
        let (fields, date) = (
            "X-Consul-Index: 7\r\nEtag: -a-b\r\nContent-Length: 12\r\n",
            "Date: Thu, 01 Jan 1970 00:00:00 GMT\r\n\r\n",
        );
        assert_eq!(text(false), format!("HTTP/1.1 404 Not Found\r\n{fields}{date}"));
        assert_eq!(text(true), format!("HTTP/1.1 404 Not Found\r\n{fields}Connection: close\r\n{date}"));
    }
}
