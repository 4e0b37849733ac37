//! EDNS: the OPT record of replies, and extended errors (RFC 8914), which hickory has no type for.

use hickory_proto::{op::Edns, rr::rdata::opt::EdnsOption};

/// The option code of an extended error.
const EDE_OPTION: u16 = 15;
/// An OPT record without options: root name, type, class, TTL, length.
const OPT_BASE: usize = 11;
/// An option's code and length, and an extended error's own code.
const EDE_BASE: usize = 6;

/// The extended errors that are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EdeCode {
    /// The answer is the last known one: the registry is out of reach.
    StaleAnswer,
    /// The replica does not hold the data yet.
    NotReady,
    /// "There is none" is the last that was known.
    StaleNxDomain,
    /// The name stands in no zone that is served here.
    NotAuthoritative,
}

impl EdeCode {
    /// Its number in the registry of RFC 8914.
    pub fn number(self) -> u16 {
        match self {
            Self::StaleAnswer => 3,
            Self::NotReady => 14,
            Self::StaleNxDomain => 19,
            Self::NotAuthoritative => 20,
        }
    }
}

/// An extended error, with words for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ede {
    /// Which.
    pub code: EdeCode,
    /// What an operator should know; may be empty.
    pub text: String,
}

impl Ede {
    /// An extended error.
    pub fn new(code: EdeCode, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }

    fn option(&self) -> EdnsOption {
        let mut data = self.code.number().to_be_bytes().to_vec();
        data.extend_from_slice(self.text.as_bytes());
        EdnsOption::Unknown(EDE_OPTION, data)
    }
}

/// The OPT record of the reply to a query that had one.
pub(crate) fn reply_edns(query: &Edns, max_udp_size: u16, ede: Option<&Ede>) -> Edns {
    let mut edns = Edns::new();
    // RFC 3225 §3: the DO bit is copied, though nothing here is signed.
    edns.set_max_payload(max_udp_size).set_version(0).set_dnssec_ok(query.flags().dnssec_ok);
    if let Some(ede) = ede {
        edns.options_mut().insert(ede.option());
    }
    edns
}

/// How many bytes that OPT record takes.
pub(crate) fn opt_size(query: Option<&Edns>, ede: Option<&Ede>) -> usize {
    query.map_or(0, |_| OPT_BASE + ede.map_or(0, |ede| EDE_BASE + ede.text.len()))
}

#[cfg(test)]
mod tests {
    use hickory_proto::serialize::binary::BinEncodable;

    use super::*;

    #[test]
    fn an_extended_error_is_encoded_as_rfc_8914_says_and_sized_right() {
        let ede = Ede::new(EdeCode::StaleAnswer, "old");
        let edns = reply_edns(&Edns::new(), 1232, Some(&ede));
        let bytes = edns.to_bytes().unwrap();
        assert_eq!(bytes[11..], [0, 15, 0, 5, 0, 3, b'o', b'l', b'd']);
        assert_eq!(bytes.len(), opt_size(Some(&edns), Some(&ede)));
        assert_eq!(reply_edns(&edns, 1232, None).to_bytes().unwrap().len(), opt_size(Some(&edns), None));
        assert_eq!(opt_size(None, Some(&ede)), 0);
    }
}
