//! Whether bytes from outside are worth parsing. Pure.

use hickory_proto::{
    op::{Header, MessageType, Metadata, OpCode, ResponseCode},
    serialize::binary::{BinDecodable, BinDecoder},
};

/// A query brings an OPT record, perhaps a signature or a cookie's; what brings more is no query,
/// and parsing would set memory aside for as many as its header claims.
const MAX_RECORDS: u16 = 8;
/// Bytes of a message before its first name.
const HEADER: usize = 12;
/// The longest label; a larger length byte is a pointer to an earlier name.
const LONGEST_LABEL: u8 = 63;

/// What is to be done with bytes from outside.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Check {
    /// Nothing: no header, or itself a reply, which must not be answered lest two servers talk for ever.
    Ignore,
    /// This response code, with no more than the header.
    Refuse(Metadata, ResponseCode),
    /// Parse it.
    Parse(Metadata),
}

/// Looks at the header, and at the name of the question.
pub(crate) fn check(bytes: &[u8]) -> Check {
    let Ok(header) = Header::read(&mut BinDecoder::new(bytes)) else { return Check::Ignore };
    let (metadata, counts) = (header.metadata, header.counts);
    if metadata.message_type == MessageType::Response {
        return Check::Ignore;
    }
    if metadata.op_code != OpCode::Query {
        return Check::Refuse(metadata, ResponseCode::NotImp);
    }
    let records = counts.answers.saturating_add(counts.authorities).saturating_add(counts.additionals);
    if counts.queries != 1 || records > MAX_RECORDS || !is_written_out(bytes) {
        return Check::Refuse(metadata, ResponseCode::FormErr);
    }
    Check::Parse(metadata)
}

/// Whether the question's name is there label by label. There is no name before it that a pointer could lead to: one
/// into the header is read as a name once, and as another in the reply, whose header differs.
fn is_written_out(bytes: &[u8]) -> bool {
    let mut at = HEADER;
    while let Some(&length) = bytes.get(at) {
        match length {
            0 => return true,
            1..=LONGEST_LABEL => at += 1 + usize::from(length),
            _ => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Id, flags, and the four counts.
    fn header(flags: u16, counts: [u16; 4]) -> Vec<u8> {
        let words = [7, flags, counts[0], counts[1], counts[2], counts[3]];
        words.into_iter().flat_map(u16::to_be_bytes).collect()
    }

    fn refused(bytes: &[u8]) -> Option<ResponseCode> {
        match check(bytes) {
            Check::Refuse(_, rcode) => Some(rcode),
            Check::Ignore | Check::Parse(_) => None,
        }
    }

    #[test]
    fn what_is_not_worth_parsing_is_refused() {
        assert_eq!(check(&[]), Check::Ignore);
        assert_eq!(check(&[0; 11]), Check::Ignore);
        assert_eq!(check(&header(0x8000, [1, 0, 0, 0])), Check::Ignore);
        assert_eq!(refused(&header(0x2000, [1, 0, 0, 0])), Some(ResponseCode::NotImp), "NOTIFY");
        assert_eq!(refused(&header(0x2800, [1, 0, 0, 0])), Some(ResponseCode::NotImp), "UPDATE");
        for counts in [[0, 0, 0, 0], [2, 0, 0, 0], [65535, 0, 0, 0], [1, 65535, 65535, 1], [1, 0, 0, 9]] {
            assert_eq!(refused(&header(0x0100, counts)), Some(ResponseCode::FormErr), "{counts:?}");
        }
        let question = |name: &[u8]| [header(0x0100, [1, 0, 0, 1]).as_slice(), name].concat();
        assert!(matches!(check(&question(b"\x03web\0")), Check::Parse(_)));
        // Into the header, onto itself, reserved, and cut off.
        for name in [b"\xc0\x02".as_slice(), b"\xc0\x0c", b"\x03web\xc0\x04", b"\x40\0", b"\x03we", b""] {
            assert_eq!(refused(&question(name)), Some(ResponseCode::FormErr), "{name:?}");
        }
    }
}
