//! What a request asks for beside its path: the parameters that every endpoint understands.

use std::{sync::Arc, time::Duration};

use axum::{
    extract::{FromRequestParts, Query},
    http::request::Parts,
};
use muster_catalog::{Instance, Node, port::Consistency};

use crate::{api::Api, budget::Answers, connection::ParkedMark, duration, error::HttpError, shared::Question};

/// How long a blocking read waits when the client does not say, as in the dialect.
const DEFAULT_WAIT: Duration = Duration::from_secs(300);
/// The longest that a blocking read waits, as in the dialect.
const MAX_WAIT: Duration = Duration::from_secs(600);
/// A request has at most so many parameters: each costs a comparison per row.
const MAX_PARAMETERS: usize = 128;

/// Parameters of the dialect that are not built: answering without them would be a wrong answer.
const UNSUPPORTED: [(&str, &str); 9] = [
    ("filter", "filter expressions"),
    ("near", "sorting by distance"),
    ("hash", "blocking by content hash"),
    ("peer", "reads from a peer"),
    ("sg", "sameness groups"),
    ("sameness-group", "sameness groups"),
    ("ns", "namespaces"),
    ("partition", "partitions"),
    ("ap", "partitions"),
];

/// Parameters that say when to answer and how current, not what: answers from one View do not depend on them.
const ABOUT_TIME: [&str; 6] = ["index", "wait", "stale", "max_stale", "consistent", "leader"];

/// The parameters of a request.
#[derive(Debug)]
pub(crate) struct Ask {
    /// How current the answer has to be.
    pub(crate) consistency: Consistency,
    /// The age up to which a stale answer will do.
    pub(crate) max_stale: Option<Duration>,
    /// Wait until the answer is newer than this; 0 does not wait.
    pub(crate) index: u64,
    /// How long to wait for it.
    pub(crate) wait: Duration,
    /// Whether people read the answer.
    pub(crate) pretty: bool,
    /// What is asked, whenever it is answered.
    pub(crate) question: Question,
    /// Where the read says that it parks.
    pub(crate) parked: Option<ParkedMark>,
    /// What answers are counted by; none where nothing is served.
    pub(crate) answers: Option<Arc<Answers>>,
}

impl FromRequestParts<Arc<Api>> for Ask {
    type Rejection = HttpError;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, HttpError> {
        let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(&parts.uri)
            .map_err(|error| HttpError::BadRequest(format!("Invalid query string: {}", error.body_text())))?;
        let mut ask = Self::new(parts.uri.path().to_owned(), pairs)?;
        ask.parked = parts.extensions.remove();
        ask.answers = Some(api.answers.clone());
        api.check_datacenter(ask.find("datacenter").or_else(|| ask.find("dc")))?;
        Ok(ask)
    }
}

impl Ask {
    /// Reads the parameters of a request for that path.
    pub(crate) fn new(path: String, pairs: Vec<(String, String)>) -> Result<Self, HttpError> {
        if pairs.len() > MAX_PARAMETERS {
            let text = format!("Too many query parameters: {}, at most {MAX_PARAMETERS}", pairs.len());
            return Err(HttpError::BadRequest(text));
        }
        let mut ask = Self {
            consistency: Consistency::Lease,
            max_stale: None,
            index: 0,
            wait: DEFAULT_WAIT,
            pretty: false,
            question: (path, pairs),
            parked: None,
            answers: None,
        };
        if let Some((name, what)) = UNSUPPORTED.iter().find(|(name, _)| ask.has(name)) {
            return Err(HttpError::BadRequest(format!("?{name}: {what} are not supported yet; leave it out")));
        }
        ask.pretty = ask.has("pretty");
        ask.read_consistency()?;
        ask.read_blocking()?;
        let pairs = &mut ask.question.1;
        pairs.retain(|(key, _)| !ABOUT_TIME.contains(&&**key));
        // A parked read keeps them for long.
        pairs.shrink_to_fit();
        Ok(ask)
    }

    fn read_consistency(&mut self) -> Result<(), HttpError> {
        let (consistent, leader) = (self.has("consistent"), self.has("leader"));
        if let Some(text) = self.find("max_stale") {
            let age = duration::parse(text);
            let age = age.ok_or_else(|| HttpError::BadRequest(format!("Invalid max_stale value {text:?}")))?;
            self.max_stale = Some(age);
        }
        let stale = self.has("stale") || self.max_stale.is_some();
        if stale && (consistent || leader) {
            let other = if consistent { "consistent" } else { "leader" };
            let text = format!("Cannot specify ?stale with ?{other}, conflicting semantics.");
            return Err(HttpError::BadRequest(text));
        }
        if stale {
            self.consistency = Consistency::Stale;
        } else if consistent {
            self.consistency = Consistency::Linearizable;
        }
        Ok(())
    }

    fn read_blocking(&mut self) -> Result<(), HttpError> {
        if let Some(text) = self.find("index").filter(|text| !text.is_empty()) {
            let index = text.parse();
            self.index = index.map_err(|_| HttpError::BadRequest(format!("Invalid index {text:?}: give a number")))?;
        }
        if let Some(text) = self.find("wait").filter(|text| !text.is_empty()) {
            let wait = duration::parse(text);
            let wait = wait.ok_or_else(|| {
                HttpError::BadRequest(format!("Invalid wait time {text:?}: give a duration such as 10s"))
            })?;
            self.wait = if wait.is_zero() { DEFAULT_WAIT } else { wait.min(MAX_WAIT) };
        }
        Ok(())
    }

    /// The first value of a parameter; those about time are read already.
    pub(crate) fn find(&self, name: &str) -> Option<&str> {
        self.question.1.iter().find(|(key, _)| key == name).map(|(_, value)| &**value)
    }

    /// Whether the parameter is there, with or without a value.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// Every value of a parameter.
    fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.question.1.iter().filter(move |(key, _)| key == name).map(|(_, value)| &**value)
    }

    /// A truth value as the dialect reads them; there without a value is true.
    pub(crate) fn flag(&self, name: &str) -> Result<bool, HttpError> {
        match self.find(name) {
            None => Ok(false),
            Some("" | "1" | "t" | "T" | "true" | "True" | "TRUE") => Ok(true),
            Some("0" | "f" | "F" | "false" | "False" | "FALSE") => Ok(false),
            Some(other) => {
                Err(HttpError::BadRequest(format!("Invalid value for ?{name}: {other:?}, give true or false")))
            }
        }
    }

    /// Whether the instance carries every `?tag`.
    pub(crate) fn wants_tags(&self, instance: &Instance) -> bool {
        self.all("tag").all(|tag| instance.has_tag(tag))
    }

    /// Every `?node-meta`.
    pub(crate) fn node_meta(&self) -> impl Iterator<Item = (&str, &str)> {
        self.all("node-meta").map(|pair| pair.split_once(':').unwrap_or((pair, "")))
    }

    /// Whether the node carries every `?node-meta`.
    pub(crate) fn wants_node(&self, node: &Node) -> bool {
        self.node_meta().all(|(key, value)| node.meta.get(key).is_some_and(|own| &**own == value))
    }
}
