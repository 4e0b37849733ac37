//! The log: what is logged, how it looks, and a filter that can be changed while the process runs.
//!
//! Lines are written by a thread of their own ([`lines`]), so that trouble with the log stops nothing else.

use std::time::Duration;

use tracing_subscriber::{
    EnvFilter, Layer, Registry, filter::LevelFilter, layer::SubscriberExt, reload, util::SubscriberInitExt,
};

use crate::config::{LogConfig, LogFormat};

mod lines;

use lines::Lines;
pub(crate) use lines::declare_metrics;

/// How long the end of the process waits for lines that are not written yet.
const FLUSH_WITHIN: Duration = Duration::from_secs(1);

/// The log of a running process. When it is dropped, what waits is written.
pub(crate) struct Log {
    lines: Lines,
    filter: reload::Handle<EnvFilter, Registry>,
}

impl Log {
    /// Begins the log on standard error. Panics go there too, in the same form as all else.
    pub(crate) fn install(config: &LogConfig) -> Result<Self, String> {
        let lines = Lines::start(std::io::stderr()).map_err(|error| format!("the log has no thread: {error}"))?;
        let (filter, handle) = reload::Layer::new(parse_filter(&config.filter)?);
        // What goes wrong in writing is counted where it happens; standard error may be what fails.
        let layer =
            tracing_subscriber::fmt::layer().with_ansi(false).with_writer(lines.clone()).log_internal_errors(false);
        let layer = match config.format {
            LogFormat::Text => layer.boxed(),
            LogFormat::Json => layer.json().boxed(),
        };
        let installed = tracing_subscriber::registry().with(filter).with(layer).try_init();
        installed.map_err(|error| error.to_string())?;
        // The usual hook writes to standard error itself, and waits for its reader.
        std::panic::set_hook(Box::new(|panic| {
            let backtrace = std::backtrace::Backtrace::capture();
            tracing::error!(%backtrace, "{panic}");
        }));
        Ok(Self { lines, filter: handle })
    }

    /// Goes on with another filter.
    pub(crate) fn set_filter(&self, filter: &str) -> Result<(), String> {
        self.filter.reload(parse_filter(filter)?).map_err(|error| error.to_string())
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.lines.flush(FLUSH_WITHIN);
    }
}

/// Crates that log each answer, try or file. What of it an operator has to know is said by Muster itself: a lost member,
/// a new leader, a disk that fails, a log that ends. `log.filter = "info,openraft=info"` shows the rest.
const QUIET: &str = "hickory_server=warn,hickory_proto=warn,openraft=off,raft_log=warn,chunked_wal=warn";

/// The filter as an operator writes it, over what we set for libraries that say too much.
pub(crate) fn parse_filter(filter: &str) -> Result<EnvFilter, String> {
    refuse_unknown_level(filter)?;
    let whole = format!("{QUIET},{filter}");
    EnvFilter::try_new(whole).map_err(|error| format!("{error}; write info or info,muster_dns=debug"))
}

/// A word alone is a level: the filter takes any other for the name of a part, of which all is logged, and of all else
/// nothing.
fn refuse_unknown_level(filter: &str) -> Result<(), String> {
    const WANTED: &str =
        "write off, error, warn, info, debug or trace, or PART=LEVEL, for example info,muster_dns=debug";
    if filter.trim().is_empty() {
        return Err(WANTED.to_owned());
    }
    let mut words = filter.split(',').map(str::trim).filter(|word| !word.is_empty() && !word.contains(['=', '[']));
    match words.find(|word| word.parse::<LevelFilter>().is_err()) {
        Some(word) => Err(format!("{word:?} is no level: {WANTED}")),
        None => Ok(()),
    }
}
