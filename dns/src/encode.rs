//! A reply as bytes, in fewer steps than hickory's encoder takes; what is written here, hickory reads as the same. Pure.

use hickory_proto::{
    op::Metadata,
    rr::{Name as DnsName, RData, Record},
};

use crate::{Answer, fit::HEADER, reply::Reply};

/// Most replies are no longer.
const USUAL_SIZE: usize = 512;
/// Most replies hold no more names and ends of names.
const USUAL_NAMES: usize = 32;
/// A pointer to an earlier name has two bits set (RFC 1035 §4.1.4); the other 14 say where it begins.
const POINTER: u8 = 0xc0;

/// Writes a reply; `None` for a record of a type that is not made here.
pub(crate) fn encode(reply: &Reply<'_>) -> Option<Vec<u8>> {
    let (metadata, question, answer, opt) = (&reply.metadata, reply.question(), &reply.answer, reply.opt());
    let mut writer = Writer::new();
    writer.write_flags(metadata);
    let additionals = answer.additionals.len() + usize::from(opt.is_some());
    for count in [usize::from(!question.is_empty()), answer.answers.len(), answer.soa.iter().len(), additionals] {
        writer.write_u16(u16::try_from(count).ok()?);
    }
    writer.write_question(question);
    for record in answer.answers.iter().chain(&answer.soa).chain(&answer.additionals) {
        writer.write_record(record)?;
    }
    if let Some(opt) = opt {
        opt.write(metadata.response_code.high(), &mut writer.bytes);
    }
    Some(writer.bytes)
}

/// How many of the answers, of the SOA and of the additional records a reply of no more than `limit` bytes holds.
pub(crate) fn count_fitting(question: &[u8], answer: &Answer, limit: usize) -> (usize, usize, usize) {
    let mut writer = Writer::new();
    writer.bytes.resize(HEADER, 0);
    writer.write_question(question);
    let mut fits = true;
    let mut count = |records: &[Record]| {
        let mut write = |record: &&Record| {
            fits = fits && writer.write_record(record).is_some() && writer.bytes.len() <= limit;
            fits
        };
        records.iter().take_while(&mut write).count()
    };
    (count(&answer.answers), count(answer.soa.as_slice()), count(&answer.additionals))
}

/// A reply being written.
struct Writer {
    bytes: Vec<u8>,
    /// Where names and their ends begin, to point there. They are looked through one by one: few, or within reach.
    names: Vec<u16>,
}

impl Writer {
    fn new() -> Self {
        Self { bytes: Vec::with_capacity(USUAL_SIZE), names: Vec::with_capacity(USUAL_NAMES) }
    }

    fn write_u16(&mut self, word: u16) {
        self.bytes.extend_from_slice(&word.to_be_bytes());
    }

    /// The id and the flags (RFC 1035 §4.1.1, RFC 4035 §3.2).
    fn write_flags(&mut self, metadata: &Metadata) {
        let flag = |set: bool, bit: u16| if set { 1 << bit } else { 0 };
        let operation = u16::from(u8::from(metadata.op_code)) << 11;
        let flags = flag(true, 15)
            | operation
            | flag(metadata.authoritative, 10)
            | flag(metadata.truncation, 9)
            | flag(metadata.recursion_desired, 8)
            | flag(metadata.recursion_available, 7)
            | flag(metadata.authentic_data, 5)
            | flag(metadata.checking_disabled, 4)
            | u16::from(metadata.response_code.low());
        self.write_u16(metadata.id);
        self.write_u16(flags);
    }

    /// As it came; its name is label by label, as `wire` has made sure.
    fn write_question(&mut self, question: &[u8]) {
        let mut rest = question;
        while let Some((&length, after)) = rest.split_first()
            && length > 0
        {
            self.note(self.bytes.len() + question.len() - rest.len());
            rest = after.get(usize::from(length)..).unwrap_or_default();
        }
        self.bytes.extend_from_slice(question);
    }

    fn write_record(&mut self, record: &Record) -> Option<()> {
        self.write_name(&record.name, true);
        self.write_u16(record.record_type().into());
        self.write_u16(record.dns_class.into());
        self.bytes.extend_from_slice(&record.ttl.to_be_bytes());
        let at = self.bytes.len();
        self.write_u16(0);
        self.write_data(&record.data)?;
        let length = u16::try_from(self.bytes.len() - at - 2).ok()?;
        self.bytes.get_mut(at..at + 2)?.copy_from_slice(&length.to_be_bytes());
        Some(())
    }

    fn write_data(&mut self, data: &RData) -> Option<()> {
        match data {
            RData::A(ip) => self.bytes.extend_from_slice(&ip.octets()),
            RData::AAAA(ip) => self.bytes.extend_from_slice(&ip.octets()),
            RData::SRV(srv) => {
                [srv.priority, srv.weight, srv.port].into_iter().for_each(|word| self.write_u16(word));
                // RFC 2782: the target is written out.
                self.write_name(&srv.target, false);
            }
            RData::CNAME(target) => self.write_name(&target.0, true),
            RData::NS(target) => self.write_name(&target.0, true),
            RData::SOA(soa) => {
                self.write_name(&soa.mname, true);
                self.write_name(&soa.rname, true);
                self.bytes.extend_from_slice(&soa.serial.to_be_bytes());
                for timer in [soa.refresh, soa.retry, soa.expire] {
                    self.bytes.extend_from_slice(&timer.to_be_bytes());
                }
                self.bytes.extend_from_slice(&soa.minimum.to_be_bytes());
            }
            RData::HINFO(info) => {
                for text in [&info.cpu, &info.os] {
                    self.bytes.push(u8::try_from(text.len()).ok()?);
                    self.bytes.extend_from_slice(text);
                }
            }
            _ => return None,
        }
        Some(())
    }

    /// Writes a name up to where it goes on as an earlier one does, and then points there if it may.
    fn write_name(&mut self, name: &DnsName, may_point: bool) {
        let mut is_known = false;
        for (number, label) in name.iter().enumerate() {
            if !is_known {
                match self.find(label, || name.iter().skip(number + 1)) {
                    Some(start) if may_point => return self.write_u16(u16::from(POINTER) << 8 | start),
                    Some(_) => is_known = true,
                    None => self.note(self.bytes.len()),
                }
            }
            // No longer than 63 bytes: hickory's names hold no other.
            self.bytes.push(label.len() as u8);
            self.bytes.extend_from_slice(label);
        }
        self.bytes.push(0);
    }

    fn note(&mut self, start: usize) {
        // What lies behind the reach of a pointer is of no use.
        if start < usize::from(POINTER) << 6 {
            self.names.push(start as u16);
        }
    }

    /// Where a name of this label and those that follow it, in their case, stands already.
    fn find<'n, L: Iterator<Item = &'n [u8]>>(&self, first: &[u8], others: impl Fn() -> L) -> Option<u16> {
        self.names.iter().copied().find(|start| {
            // Nearly always it is another label: that is seen without looking at the others.
            self.skip(usize::from(*start), first).is_some_and(|after| self.reads_as(after, others()))
        })
    }

    /// Where it goes on after this label; `None` if another one stands there.
    fn skip(&self, at: usize, label: &[u8]) -> Option<usize> {
        let (&length, rest) = self.bytes.get(at..)?.split_first()?;
        let length = usize::from(length);
        (length == label.len() && rest.get(..length)? == label).then_some(at + 1 + length)
    }

    /// Whether these labels and no more stand there.
    fn reads_as<'n>(&self, mut at: usize, mut labels: impl Iterator<Item = &'n [u8]>) -> bool {
        loop {
            let Some(&length) = self.bytes.get(at) else { return false };
            if length >= POINTER {
                let Some(low) = self.bytes.get(at + 1) else { return false };
                // Always an earlier place, so this ends.
                at = usize::from(u16::from_be_bytes([length - POINTER, *low]));
                continue;
            }
            let Some(label) = labels.next() else { return length == 0 };
            let Some(after) = self.skip(at, label) else { return false };
            at = after;
        }
    }
}

#[cfg(test)]
mod tests;
