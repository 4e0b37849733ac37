//! A linearizability checker for registers: is there an order of all operations that explains every answer?
//!
//! The search is that of Wing and Gong with Lowe's memory of configurations: of the operations that may come next
//! (no other that is still unplaced returned before they began) one is placed, and a configuration (what is placed,
//! what the register then holds) is looked at once. Registers of different keys are independent, so that a history
//! is linearizable when its part of each key is: the search runs per key. A write whose outcome is unknown may take
//! effect at any time after it began, or never.
//!
//! Record nothing for an operation that certainly did not happen (a refused write), and `returned: None` for one
//! that may have happened (a timeout, a lost connection).

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
};

/// How many configurations of one key are looked at before the search gives up: about a gigabyte of memory, and far
/// above what histories with tens of concurrent clients need.
const CONFIGURATIONS_MOST: usize = 4_000_000;
/// How many operations a violation shows: those around the offence, not the whole history.
const SHOWN_MOST: usize = 12;

/// What was asked and, for a read, what was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// The register was set.
    Write(String),
    /// The register was read: what it held, `None` for nothing.
    Read(Option<String>),
    /// The register was emptied.
    Delete,
}

/// One call of a client on one register. Times are of one clock that never goes backwards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// Who asked.
    pub client: usize,
    /// The register.
    pub key: String,
    /// What was asked, and answered.
    pub kind: Kind,
    /// When it was asked.
    pub invoked: u64,
    /// When the answer came; `None` when none came: the outcome is unknown.
    pub returned: Option<u64>,
}

/// What all clients saw, in any order.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// Every operation that took place or may have.
    pub operations: Vec<Operation>,
}

/// Why a history is not known to be linearizable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// No order explains the answers.
    #[error("{0}")]
    NotLinearizable(Box<Explanation>),
    /// The recorder is broken: an answer came before its question.
    #[error("the history is malformed, an answer came before its question: {0}")]
    Malformed(Operation),
    /// Too many operations are concurrent, or of unknown outcome.
    #[error("register {key:?} was not decided in {configurations} configurations: use more keys or fewer clients")]
    Undecided {
        /// The register.
        key: String,
        /// How many were looked at.
        configurations: usize,
    },
}

/// How far the best order came, and what could not follow it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// The register.
    pub key: String,
    /// How many operations the best order explains, of how many.
    pub explained: (usize, usize),
    /// What the register holds after them.
    pub held: Option<String>,
    /// The last operations of that order.
    pub last: Vec<Operation>,
    /// Those that would have to follow, none of which fits.
    pub stuck: Vec<Operation>,
}

/// Looks for an order of the operations of each register that explains every answer.
pub fn check(history: &History) -> Result<(), Violation> {
    let mut by_key: BTreeMap<&str, Vec<&Operation>> = BTreeMap::new();
    for operation in &history.operations {
        if operation.returned.is_some_and(|returned| returned < operation.invoked) {
            return Err(Violation::Malformed(operation.clone()));
        }
        // A read without an answer says nothing.
        if operation.returned.is_some() || !matches!(operation.kind, Kind::Read(_)) {
            by_key.entry(&operation.key).or_default().push(operation);
        }
    }
    by_key.into_iter().try_for_each(|(key, operations)| Search::new(operations).run(key))
}

/// What is placed, and what the register then holds (a position in `Search::values`).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Configuration {
    placed: Box<[u64]>,
    held: usize,
}

impl Configuration {
    fn has(&self, operation: usize) -> bool {
        self.placed[operation / 64] & (1 << (operation % 64)) != 0
    }

    fn place(&self, operation: usize, held: usize) -> Self {
        let mut placed = self.placed.clone();
        placed[operation / 64] |= 1 << (operation % 64);
        Self { placed, held }
    }
}

/// A configuration with the operation placed last and the step before, so that the order can be told.
struct Step {
    configuration: Configuration,
    placed: Option<(usize, usize)>,
    depth: usize,
}

struct Search<'a> {
    /// In the order of their questions.
    operations: Vec<&'a Operation>,
    /// What each operation writes or reads, as a position in `values`.
    value_of: Vec<usize>,
    /// All values; the first is none.
    values: Vec<Option<&'a str>>,
    /// How many operations have to be placed: those with an answer.
    answered: usize,
}

impl<'a> Search<'a> {
    fn new(mut operations: Vec<&'a Operation>) -> Self {
        operations.sort_by_key(|operation| operation.invoked);
        let mut values: Vec<Option<&str>> = vec![None];
        let mut numbers: BTreeMap<Option<&str>, usize> = BTreeMap::from([(None, 0)]);
        let mut number = |value: Option<&'a str>| {
            *numbers.entry(value).or_insert_with(|| {
                values.push(value);
                values.len() - 1
            })
        };
        let value_of = operations.iter().map(|operation| match &operation.kind {
            Kind::Write(value) => number(Some(value)),
            Kind::Read(value) => number(value.as_deref()),
            Kind::Delete => number(None),
        });
        let value_of = value_of.collect();
        let answered = operations.iter().filter(|operation| operation.returned.is_some()).count();
        Self { operations, value_of, values, answered }
    }

    fn run(&self, key: &str) -> Result<(), Violation> {
        let placed = vec![0; self.operations.len().div_ceil(64)].into();
        let mut steps = vec![Step { configuration: Configuration { placed, held: 0 }, placed: None, depth: 0 }];
        let mut seen = HashSet::new();
        let mut todo = vec![0];
        let mut best = 0;
        while let Some(at) = todo.pop() {
            let Step { configuration, depth, .. } = &steps[at];
            if *depth == self.answered {
                return Ok(());
            }
            if *depth > steps[best].depth {
                best = at;
            }
            let depth = *depth;
            for (operation, next) in self.followers(configuration) {
                if seen.insert(next.clone()) {
                    let answered = usize::from(self.operations[operation].returned.is_some());
                    todo.push(steps.len());
                    steps.push(Step { configuration: next, placed: Some((operation, at)), depth: depth + answered });
                }
            }
            if seen.len() > CONFIGURATIONS_MOST {
                return Err(Violation::Undecided { key: key.to_owned(), configurations: seen.len() });
            }
        }
        Err(Violation::NotLinearizable(Box::new(self.explain(key, &steps, best))))
    }

    /// The operations that no unplaced one precedes, in the order of their questions.
    fn candidates(&self, configuration: &Configuration) -> Vec<usize> {
        let mut first_return = u64::MAX;
        let mut candidates = Vec::new();
        for (at, operation) in self.operations.iter().enumerate() {
            if operation.invoked > first_return {
                break;
            }
            if !configuration.has(at) {
                candidates.push(at);
                first_return = first_return.min(operation.returned.unwrap_or(u64::MAX));
            }
        }
        candidates.retain(|at| self.operations[*at].invoked <= first_return);
        candidates
    }

    fn followers(&self, configuration: &Configuration) -> Vec<(usize, Configuration)> {
        let mut candidates = self.candidates(configuration);
        let is_read = |at: &usize| matches!(self.operations[*at].kind, Kind::Read(_));
        // A read that fits changes nothing: to place it now can never be wrong.
        if let Some(read) = candidates.iter().find(|at| is_read(at) && self.value_of[**at] == configuration.held) {
            return vec![(*read, configuration.place(*read, configuration.held))];
        }
        candidates.retain(|at| !is_read(at));
        // The search takes the last first: answered ones before those that may never have happened.
        candidates.sort_by_key(|at| std::cmp::Reverse(self.operations[*at].returned.unwrap_or(u64::MAX)));
        candidates.into_iter().map(|at| (at, configuration.place(at, self.value_of[at]))).collect()
    }

    fn explain(&self, key: &str, steps: &[Step], best: usize) -> Explanation {
        let mut last = Vec::new();
        let mut placed = steps[best].placed;
        while let Some((operation, before)) = placed.filter(|_| last.len() < SHOWN_MOST) {
            last.push(self.operations[operation].clone());
            placed = steps[before].placed;
        }
        last.reverse();
        let configuration = &steps[best].configuration;
        let stuck = self.candidates(configuration).into_iter().filter(|at| self.operations[*at].returned.is_some());
        Explanation {
            key: key.to_owned(),
            explained: (steps[best].depth, self.answered),
            held: self.values[configuration.held].map(str::to_owned),
            last,
            stuck: stuck.take(SHOWN_MOST).map(|at| self.operations[at].clone()).collect(),
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.returned {
            Some(returned) => write!(f, "[{:>6} .. {returned:>6}]", self.invoked)?,
            None => write!(f, "[{:>6} ..      ?]", self.invoked)?,
        }
        write!(f, " client {}: ", self.client)?;
        match &self.kind {
            Kind::Write(value) => write!(f, "write {value:?}"),
            Kind::Read(Some(value)) => write!(f, "read {value:?}"),
            Kind::Read(None) => write!(f, "read nothing"),
            Kind::Delete => write!(f, "delete"),
        }
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (explained, all) = self.explained;
        writeln!(f, "register {:?} is not linearizable: {explained} of {all} answers are explained by", self.key)?;
        self.last.iter().try_for_each(|operation| writeln!(f, "    {operation}"))?;
        match &self.held {
            Some(value) => writeln!(f, "after which it holds {value:?}, and none of these fits:")?,
            None => writeln!(f, "after which it holds nothing, and none of these fits:")?,
        }
        self.stuck.iter().try_for_each(|operation| writeln!(f, "    {operation}"))
    }
}

#[cfg(test)]
mod tests;
