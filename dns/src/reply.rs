//! What is said to a request, before it is written: an [`Answer`] that fits, with the header that goes with it.

use std::time::Instant;

use hickory_proto::op::{LowerQuery, Metadata};
use hickory_server::server::Request;

use crate::{
    Answer,
    edns::Opt,
    fit::{Measure, fit},
};

/// A reply that is not bytes yet. Each way out writes the same of it.
pub(crate) struct Reply<'r> {
    pub(crate) request: &'r Request,
    /// The question; `None` when it cannot be read.
    pub(crate) query: Option<&'r LowerQuery>,
    pub(crate) metadata: Metadata,
    /// Cut to what the way out takes.
    pub(crate) answer: Answer,
    /// The largest UDP message that is taken, as the OPT record says it.
    pub(crate) max_udp_size: u16,
    /// When the request was taken up, for one in so many.
    pub(crate) started: Option<Instant>,
}

impl Reply<'_> {
    /// The question as it came.
    pub(crate) fn question(&self) -> &[u8] {
        self.request.queries.as_bytes()
    }

    /// The OPT record, for clients that sent one.
    pub(crate) fn opt(&self) -> Option<Opt<'_>> {
        Some(Opt::reply(self.request.edns.as_ref()?, self.max_udp_size, self.answer.ede.as_ref()))
    }

    /// Trims the answer to so many bytes of a reply; tells whether records that were asked for went.
    pub(crate) fn fit(&mut self, limit: usize, measure: Measure) -> bool {
        let opt = self.opt().map_or(0, |opt| opt.size());
        fit(&mut self.answer, self.request.queries.as_bytes(), limit, opt, measure)
    }
}
