//! What a question is answered with. Pure: a View, a Question, randomness and the time in, an [`Answer`] out.

use std::{collections::HashSet, hash::Hash, iter, net::IpAddr, sync::LazyLock};

use hickory_proto::{
    op::ResponseCode,
    rr::{
        Name as DnsName, RData, Record, RecordType,
        rdata::{A, AAAA, CNAME, HINFO, NS, SOA, SRV},
    },
};
use muster_catalog::{Address, Freshness, Name, NodeEntry, ServiceLookup, Snapshot, Timestamp, View};
use rand::{Rng, RngExt};

use crate::{
    Ede, EdeCode, Question, Selector, Subject, Zone, Zones,
    pick::{self, Order, Serving},
    question,
};

/// How long the zone's NS record and its glue may be kept: it changes with the configuration only.
const NS_TTL: u32 = 300;
/// The SOA's timers (RFC 1912 §2.2); no secondary reads them, as the zone is not transferred.
const SOA_REFRESH: i32 = 3600;
const SOA_RETRY: i32 = 600;
const SOA_EXPIRE: i32 = 86_400;
/// All instances are equal but for their weights.
const SRV_PRIORITY: u16 = 1;

/// Up to so many are compared one by one.
const FEW: usize = 16;
/// An alias may lead to another, up to so many: resolvers follow about as many, and a circle has to end.
const MAX_ALIASES: usize = 8;

/// A question with what else an answer depends on.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// What is asked for.
    pub question: &'a Question<'a>,
    /// The name as the client wrote it: answers repeat its case.
    pub owner: &'a DnsName,
    /// The type.
    pub qtype: RecordType,
    /// The most records that could fit in the reply: more are not made.
    pub most: usize,
    /// How the instances of a service are ordered.
    pub order: Order,
    /// The time.
    pub now: Timestamp,
}

/// What a question is answered with.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The response code.
    pub rcode: ResponseCode,
    /// Whether this server speaks for the name.
    pub authoritative: bool,
    /// The records asked for.
    pub answers: Vec<Record>,
    /// The SOA, where there are none.
    pub soa: Option<Record>,
    /// Addresses of SRV and NS targets.
    pub additionals: Vec<Record>,
    /// An extended error, for clients that speak EDNS.
    pub ede: Option<Ede>,
    /// Whether it comes from a View that the registry does not keep up to date at present.
    pub stale: bool,
    /// How often each of the last answers should come first, where they are in a fixed order.
    weights: Vec<u16>,
}

/// The replica knows that the service exists, but does not hold it: ask the source to hold it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotHeld(pub Name);

impl Answer {
    /// A response code and nothing else.
    pub fn code(rcode: ResponseCode) -> Self {
        let (answers, additionals) = (Vec::new(), Vec::new());
        let weights = Vec::new();
        Self { rcode, authoritative: false, answers, soa: None, additionals, ede: None, stale: false, weights }
    }

    /// Draws an order for answers that came in a fixed one: which they are stays, which of them goes first does not.
    pub(crate) fn draw_order(&mut self, rng: &mut impl Rng) {
        let aliases = self.answers.iter().take_while(|record| record.record_type() == RecordType::CNAME).count();
        let weighed = self.answers.drain(aliases..).zip(self.weights.drain(..).chain(iter::repeat(1)));
        let mut drawn: Vec<_> = weighed.map(|(record, weight)| (pick::draw(rng.random(), weight), record)).collect();
        drawn.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        self.answers.extend(drawn.into_iter().map(|(_, record)| record));
    }

    /// There is nothing to answer from yet.
    pub fn not_ready(text: &str) -> Self {
        Self { ede: Some(Ede::new(EdeCode::NotReady, text)), ..Self::code(ResponseCode::ServFail) }
    }

    fn refused() -> Self {
        let text = "not a name in a zone served here";
        Self { ede: Some(Ede::new(EdeCode::NotAuthoritative, text)), ..Self::code(ResponseCode::Refused) }
    }
}

/// Answers a question from a View.
pub fn answer(view: &View, zones: &Zones, asked: Asked<'_>, rng: &mut impl Rng) -> Result<Answer, NotHeld> {
    let Question::Inside { zone, subject } = asked.question else { return Ok(Answer::refused()) };
    if view.freshness == Freshness::Empty {
        return Ok(Answer::not_ready("the catalog has not been loaded yet"));
    }
    let mut draft = Draft {
        zones,
        zone,
        asked,
        snapshot: &view.local,
        owner: asked.owner.clone(),
        aliases: 0,
        leads_to_nothing: false,
        answers: Vec::new(),
        weights: Vec::new(),
        additionals: Vec::new(),
    };
    let exists = draft.fill(subject, rng)?;
    Ok(draft.finish(exists, view.freshness))
}

/// An answer being made.
struct Draft<'a> {
    zones: &'a Zones,
    zone: &'a Zone,
    asked: Asked<'a>,
    snapshot: &'a Snapshot,
    /// The name whose records are added: the one that was asked for, or the target of an alias.
    owner: DnsName,
    /// How many of the answers are aliases; they stand first.
    aliases: usize,
    /// Whether the last alias leads to a name here that has no such records.
    leads_to_nothing: bool,
    answers: Vec<Record>,
    /// As in the [`Answer`].
    weights: Vec<u16>,
    additionals: Vec<Record>,
}

impl<'a> Draft<'a> {
    /// Adds the records asked for; tells whether the name exists.
    fn fill(&mut self, subject: &Subject, rng: &mut impl Rng) -> Result<bool, NotHeld> {
        Ok(match subject {
            Subject::Nothing => false,
            Subject::Subtree => true,
            Subject::Apex => {
                self.fill_apex();
                true
            }
            Subject::NameServer => {
                let addresses = self.zones.ns_addresses.iter();
                self.fill_addresses(addresses.map(|ip| (*ip, 1)), NS_TTL);
                true
            }
            Subject::Addr(ip) => {
                self.fill_addresses([(*ip, 1)], self.zones.ttls.node);
                true
            }
            Subject::Node(name) => match self.snapshot.find_node(name) {
                Some(node) => self.fill_node(node, rng)?,
                // The end of a node's name with dots exists without records.
                None => self.snapshot.has_nodes_below(name),
            },
            Subject::Service { service, selector } => self.fill_service(service, selector, rng)?,
        })
    }

    fn finish(mut self, exists: bool, freshness: Freshness) -> Answer {
        let rcode = if exists { ResponseCode::NoError } else { ResponseCode::NXDomain };
        // RFC 2308 §2: so is an alias that leads to nothing.
        let negative = self.answers.is_empty() || self.leads_to_nothing;
        if negative {
            self.additionals.clear();
        }
        let stale = match freshness {
            Freshness::Stale { since } => Some(self.asked.now.since(since).as_secs()),
            Freshness::Live | Freshness::Empty => None,
        };
        let ede = stale.map(|age| {
            let code = if negative { EdeCode::StaleNxDomain } else { EdeCode::StaleAnswer };
            Ede::new(code, format!("as the registry told it {age} s ago"))
        });
        Answer {
            rcode,
            authoritative: true,
            soa: negative.then(|| self.soa()),
            answers: self.answers,
            additionals: self.additionals,
            ede,
            stale: stale.is_some(),
            weights: self.weights,
        }
    }

    fn push(&mut self, ttl: u32, data: RData) {
        self.answers.push(Record::from_rdata(self.owner.clone(), ttl, data));
    }

    /// Adds a record of an instance.
    fn push_weighed(&mut self, ttl: u32, weight: u16, data: RData) {
        if self.asked.order != Order::Drawn {
            self.weights.push(weight);
        }
        self.push(ttl, data);
    }

    /// Whether no further record may be added.
    fn is_full(&self) -> bool {
        let limit = self.zones.answer_limit;
        self.answers.len() >= self.asked.most || (limit > 0 && self.answers.len() - self.aliases >= limit)
    }

    fn soa(&self) -> Record {
        let (mname, rname) = (self.zone.ns.clone(), self.zone.hostmaster.clone());
        let negative = self.zones.ttls.negative;
        // Serial numbers wrap (RFC 1982), so the low half of the index is one.
        let serial = self.snapshot.index() as u32;
        let soa = SOA::new(mname, rname, serial, SOA_REFRESH, SOA_RETRY, SOA_EXPIRE, negative);
        Record::from_rdata(self.zone.apex.clone(), negative, RData::SOA(soa))
    }

    fn fill_apex(&mut self) {
        match self.asked.qtype {
            RecordType::SOA => {
                let soa = self.soa();
                self.push(soa.ttl, soa.data);
            }
            RecordType::NS => {
                self.push(NS_TTL, RData::NS(NS(self.zone.ns.clone())));
                let addresses = self.zones.ns_addresses.iter();
                let glue = addresses.map(|ip| Record::from_rdata(self.zone.ns.clone(), NS_TTL, ip_data(*ip)));
                self.additionals.extend(glue);
            }
            RecordType::ANY => self.push_any(),
            _ => {}
        }
    }

    /// RFC 8482 §4.2: an answer to ANY that is true, small, and no use to who would amplify it.
    fn push_any(&mut self) {
        self.push(self.zones.ttls.negative, RData::HINFO(HINFO::new("RFC8482".to_owned(), String::new())));
    }

    /// Adds those addresses whose family was asked for, each once, with their weights. An IPv4 address that is mapped into
    /// IPv6 is one of IPv4.
    fn fill_addresses(&mut self, addresses: impl IntoIterator<Item = (IpAddr, u16)>, ttl: u32) {
        if self.asked.qtype == RecordType::ANY {
            return self.push_any();
        }
        let mut seen = Seen::default();
        for (ip, weight) in addresses {
            if self.is_full() {
                return;
            }
            let ip = ip.to_canonical();
            if family(ip) == self.asked.qtype && seen.insert(ip) {
                self.push_weighed(ttl, weight, ip_data(ip));
            }
        }
    }

    fn fill_node(&mut self, node: &NodeEntry, rng: &mut impl Rng) -> Result<bool, NotHeld> {
        let ttl = self.zones.ttls.node;
        match &node.node.value.address {
            Address::Ip(ip) => self.fill_addresses([(*ip, 1)], ttl),
            Address::Host(_) if self.asked.qtype == RecordType::ANY => self.push_any(),
            Address::Host(host) => return self.push_cname(host, ttl, rng),
        }
        Ok(true)
    }

    /// Adds an alias and what it leads to; tells whether the name that it leads to exists, as far as it is known here.
    fn push_cname(&mut self, host: &str, ttl: u32, rng: &mut impl Rng) -> Result<bool, NotHeld> {
        let asked = matches!(self.asked.qtype, RecordType::A | RecordType::AAAA | RecordType::CNAME);
        let Some(target) = asked.then(|| find_host(host)).flatten() else { return Ok(true) };
        self.push(ttl, RData::CNAME(CNAME(target.clone())));
        self.aliases += 1;
        if self.asked.qtype == RecordType::CNAME { Ok(true) } else { self.follow(target, rng) }
    }

    /// Goes on with an alias's target that is a name here (RFC 1034 §4.3.2): a forwarder does not ask on, and the code of an
    /// answer is that of the last name (RFC 6604 §3).
    fn follow(&mut self, target: DnsName, rng: &mut impl Rng) -> Result<bool, NotHeld> {
        if self.aliases == MAX_ALIASES || self.answers.iter().any(|alias| alias.name == target) {
            return Ok(true);
        }
        let Question::Inside { zone, subject } = question::parse(&target, self.zones) else { return Ok(true) };
        (self.zone, self.owner) = (zone, target);
        let before = self.answers.len();
        let exists = self.fill(&subject, rng)?;
        self.leads_to_nothing |= self.answers.len() == before;
        Ok(exists)
    }

    fn fill_service(&mut self, service: &Name, selector: &Selector, rng: &mut impl Rng) -> Result<bool, NotHeld> {
        let (slot, set) = match self.snapshot.service(service) {
            ServiceLookup::Absent => return Ok(false),
            ServiceLookup::NotHeld(slot) => return Err(NotHeld(slot.name.clone())),
            ServiceLookup::Held(slot, set) => (slot, set),
        };
        let mut picked = pick::pick(self.snapshot, slot, set, selector);
        let mut exists = picked.exists;
        match self.asked.qtype {
            RecordType::ANY if !picked.serving.is_empty() => self.push_any(),
            RecordType::SRV => {
                pick::sort(&mut picked.serving, self.asked.order, rng);
                self.fill_srv(&picked.serving);
            }
            RecordType::A | RecordType::AAAA | RecordType::CNAME => {
                pick::sort(&mut picked.serving, self.asked.order, rng);
                exists &= self.fill_service_addresses(&picked.serving, rng)?;
            }
            _ => {}
        }
        Ok(exists)
    }

    fn fill_service_addresses(&mut self, serving: &[Serving<'_>], rng: &mut impl Rng) -> Result<bool, NotHeld> {
        let ttl = self.zones.ttls.service;
        if serving.iter().any(|one| one.address().ip().is_some()) {
            let addresses = serving.iter().filter_map(|one| Some((one.address().ip()?, one.weight)));
            self.fill_addresses(addresses, ttl);
            return Ok(true);
        }
        // An alias stands alone (RFC 1034 §3.6.2): only one, and only where there is no address.
        let host = serving.iter().find_map(|one| match one.address() {
            Address::Host(host) => Some(host),
            Address::Ip(_) => None,
        });
        match host {
            Some(host) => self.push_cname(host, ttl, rng),
            None => Ok(true),
        }
    }

    fn fill_srv(&mut self, serving: &[Serving<'_>]) {
        let ttl = self.zones.ttls.service;
        let (mut seen, mut glued) = (Seen::default(), Seen::default());
        for one in serving {
            if self.is_full() {
                return;
            }
            let host = Host::of(one);
            // Names are made for what is answered only, and compared by what they are made from.
            if !seen.insert((host, one.port)) {
                continue;
            }
            let Some((target, glue)) = self.find_target(one) else { continue };
            if let Some(ip) = glue
                && glued.insert(host)
            {
                self.additionals.push(Record::from_rdata(target.clone(), self.zones.ttls.node, ip_data(ip)));
            }
            self.push_weighed(ttl, one.weight, RData::SRV(SRV::new(SRV_PRIORITY, one.weight, one.port, target)));
        }
    }

    /// The name that an SRV record points to, and its address if the name stands in this zone.
    fn find_target(&self, one: &Serving<'_>) -> Option<(DnsName, Option<IpAddr>)> {
        let ip = match one.address() {
            // The target of SRV must be no alias (RFC 2782), so it is the host itself, not a name here.
            Address::Host(host) => return Some((find_host(host)?, None)),
            Address::Ip(ip) => ip.to_canonical(),
        };
        let node = match one.instance.address {
            None => under(one.node.node.value.name.as_key().split('.'), &self.zone.nodes),
            Some(_) => None,
        };
        // A node whose name does not fit in a DNS name is named by its address.
        let target = node.or_else(|| under([address_label(ip).as_str()], &self.zone.addresses))?;
        Some((target, Some(ip)))
    }
}

/// What an SRV target is named after: equal hosts have equal targets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Host<'v> {
    Elsewhere(&'v str),
    Node(&'v str),
    Address(IpAddr),
}

impl<'v> Host<'v> {
    fn of(one: &Serving<'v>) -> Self {
        match (one.address(), &one.instance.address) {
            (Address::Host(host), _) => Self::Elsewhere(host),
            (Address::Ip(_), None) => Self::Node(one.node.node.value.name.as_key()),
            (Address::Ip(ip), Some(_)) => Self::Address(*ip),
        }
    }
}

/// What came already. A few are looked through, which costs less than hashing them.
struct Seen<T> {
    few: Vec<T>,
    many: HashSet<T>,
}

impl<T> Default for Seen<T> {
    fn default() -> Self {
        Self { few: Vec::new(), many: HashSet::new() }
    }
}

impl<T: Copy + Eq + Hash> Seen<T> {
    /// Says whether it is new.
    fn insert(&mut self, one: T) -> bool {
        if self.few.len() == FEW {
            self.many.extend(self.few.drain(..));
        }
        if !self.many.is_empty() {
            return self.many.insert(one);
        }
        let is_new = !self.few.contains(&one);
        if is_new {
            self.few.push(one);
        }
        is_new
    }
}

fn family(ip: IpAddr) -> RecordType {
    if ip.is_ipv4() { RecordType::A } else { RecordType::AAAA }
}

fn ip_data(ip: IpAddr) -> RData {
    match ip {
        IpAddr::V4(ip) => RData::A(A(ip)),
        IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
    }
}

fn address_label(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => format!("{:08x}", ip.to_bits()),
        IpAddr::V6(ip) => format!("{:032x}", ip.to_bits()),
    }
}

fn find_host(host: &str) -> Option<DnsName> {
    under(host.split('.'), &DnsName::root())
}

fn under<'l>(labels: impl IntoIterator<Item = &'l str>, parent: &DnsName) -> Option<DnsName> {
    // To copy an empty one costs less than to make it.
    static EMPTY: LazyLock<DnsName> = LazyLock::new(DnsName::new);
    let labels = labels.into_iter().try_fold(EMPTY.clone(), |name, label| name.append_label(label.as_bytes()));
    labels.and_then(|name| name.append_name(parent)).ok()
}

#[cfg(test)]
mod tests;
