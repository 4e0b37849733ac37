//! How the names of members become addresses. Whoever starts a member or a client may bring a way of its own.

use std::{fmt, future::Future, net::SocketAddr, pin::Pin, sync::Arc};

type Resolving = Pin<Box<dyn Future<Output = Result<Vec<SocketAddr>, String>> + Send>>;

/// A way from `host:port` to addresses. The default asks the system's resolver, which holds a thread of tokio's pool for
/// blocking work for as long as a name server is silent.
#[derive(Clone)]
pub struct Resolve(Arc<dyn Fn(String) -> Resolving + Send + Sync>);

impl Resolve {
    /// Asks this function.
    pub fn by<F>(resolve: impl Fn(String) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<Vec<SocketAddr>, String>> + Send + 'static,
    {
        Self(Arc::new(move |target| Box::pin(resolve(target))))
    }

    /// The addresses of `host:port`.
    pub async fn resolve(&self, target: &str) -> Result<Vec<SocketAddr>, String> {
        (self.0)(target.to_owned()).await
    }
}

impl Default for Resolve {
    fn default() -> Self {
        Self::by(|target| async move {
            let found = tokio::net::lookup_host(target).await.map_err(|error| error.to_string())?;
            Ok(found.collect())
        })
    }
}

impl fmt::Debug for Resolve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Resolve")
    }
}
