//! EDNS: the OPT record of replies, and extended errors (RFC 8914), which hickory has no type for.

use hickory_proto::{
    op::Edns,
    rr::{RecordType, rdata::opt::EdnsOption},
};

/// The option code of an extended error.
const EDE_OPTION: u16 = 15;
/// An OPT record without options: root name, type, class, TTL, length.
const OPT_BASE: usize = 11;
/// An option's code and length, and an extended error's own code.
const EDE_BASE: usize = 6;
/// The DO bit, in the upper half of the flags.
const DO: u8 = 0x80;

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
}

/// The OPT record of a reply.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Opt<'a> {
    max_udp_size: u16,
    dnssec_ok: bool,
    ede: Option<&'a Ede>,
}

impl<'a> Opt<'a> {
    /// In the reply to a query that had one.
    pub(crate) fn reply(query: &Edns, max_udp_size: u16, ede: Option<&'a Ede>) -> Self {
        // RFC 3225 §3: the DO bit is copied, though nothing here is signed.
        Self { max_udp_size, dnssec_ok: query.flags().dnssec_ok, ede }
    }

    /// How many bytes it takes.
    pub(crate) fn size(&self) -> usize {
        OPT_BASE + self.ede.map_or(0, |ede| EDE_BASE + ede.text.len())
    }

    /// As hickory's encoder takes it.
    pub(crate) fn to_edns(self) -> Edns {
        let mut edns = Edns::new();
        edns.set_max_payload(self.max_udp_size).set_version(0).set_dnssec_ok(self.dnssec_ok);
        if let Some(ede) = self.ede {
            let mut data = ede.code.number().to_be_bytes().to_vec();
            data.extend_from_slice(ede.text.as_bytes());
            edns.options_mut().insert(EdnsOption::Unknown(EDE_OPTION, data));
        }
        edns
    }

    /// Writes it (RFC 6891 §6.1.2), with the upper bits of the response code.
    pub(crate) fn write(&self, rcode_high: u8, bytes: &mut Vec<u8>) {
        bytes.push(0);
        bytes.extend_from_slice(&u16::from(RecordType::OPT).to_be_bytes());
        bytes.extend_from_slice(&self.max_udp_size.to_be_bytes());
        bytes.extend_from_slice(&[rcode_high, 0, if self.dnssec_ok { DO } else { 0 }, 0]);
        let Some(ede) = self.ede else { return bytes.extend_from_slice(&[0, 0]) };
        // Texts are ours and short: no length overflows.
        let text = u16::try_from(ede.text.len()).unwrap_or_default();
        for word in [4 + 2 + text, EDE_OPTION, 2 + text, ede.code.number()] {
            bytes.extend_from_slice(&word.to_be_bytes());
        }
        bytes.extend_from_slice(&ede.text.as_bytes()[..usize::from(text)]);
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::serialize::binary::BinEncodable;

    use super::*;

    #[test]
    fn an_extended_error_is_encoded_as_rfc_8914_says_and_sized_right() {
        let ede = Ede::new(EdeCode::StaleAnswer, "old");
        for (ede, dnssec_ok) in [(Some(&ede), false), (Some(&ede), true), (None, false), (None, true)] {
            let opt = Opt::reply(Edns::new().set_dnssec_ok(dnssec_ok), 1232, ede);
            let bytes = opt.to_edns().to_bytes().unwrap();
            assert_eq!(bytes.len(), opt.size());
            let mut written = Vec::new();
            opt.write(0, &mut written);
            assert_eq!(written, bytes);
            let expected: &[u8] = if ede.is_some() { &[0, 15, 0, 5, 0, 3, b'o', b'l', b'd'] } else { &[] };
            assert_eq!(&bytes[OPT_BASE..], expected);
        }
    }
}
