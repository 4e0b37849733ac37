//! Tasks by name: one that ends before it is told to ends the process.

use std::future::Future;

use tokio::task::JoinSet;

/// Why the process has to end.
#[derive(Debug, thiserror::Error)]
#[error("task {task} ended unexpectedly{}; exiting so that the service manager starts this process anew", .why.as_ref().map(|why| format!(" ({why})")).unwrap_or_default())]
pub struct Died {
    task: &'static str,
    why: Option<String>,
}

/// The tasks of a process.
#[derive(Debug, Default)]
pub(crate) struct Supervisor {
    tasks: JoinSet<&'static str>,
    names: std::collections::HashMap<tokio::task::Id, &'static str>,
}

impl Supervisor {
    /// Starts a task that runs until it is told to stop.
    pub(crate) fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let handle = self.tasks.spawn(async move {
            task.await;
            name
        });
        self.names.insert(handle.id(), name);
    }

    /// Waits until a task ends, which none should do by itself.
    pub(crate) async fn died(&mut self) -> Died {
        match self.tasks.join_next_with_id().await {
            Some(Ok((_, task))) => Died { task, why: None },
            Some(Err(error)) => {
                let task = self.names.get(&error.id()).copied().unwrap_or("unknown");
                Died { task, why: Some(error.to_string()) }
            }
            None => std::future::pending().await,
        }
    }

    /// Waits until all tasks but these have ended, after they were told to.
    pub(crate) async fn ended_but(&mut self, others: &[&str]) {
        let staying = self.names.values().filter(|name| others.contains(name)).count();
        while self.tasks.len() > staying {
            self.tasks.join_next().await;
        }
    }

    /// Waits until all tasks have ended, after they were told to.
    pub(crate) async fn ended(&mut self) {
        while self.tasks.join_next().await.is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_returns_or_panics_is_named_while_others_run() {
        let mut supervisor = Supervisor::default();
        supervisor.spawn("steady", std::future::pending());
        supervisor.spawn("brief", async {});
        let died = supervisor.died().await.to_string();
        assert!(died.starts_with("task brief ended unexpectedly"), "{died}");
        supervisor.spawn("clumsy", async { panic!("it tripped") });
        let died = supervisor.died().await.to_string();
        assert!(died.contains("task clumsy ended unexpectedly") && died.contains("it tripped"), "{died}");
    }
}
