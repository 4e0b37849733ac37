//! Catalog formats: what each brought, and how to do without it.
//!
//! | format | brought |
//! | --- | --- |
//! | 1 | all that is not named below |
//! | 2 | [`Instance::proxy`], [`Instance::traffic`] |
//!
//! While a catalog has a lower format some member may not know the newer fields, and would fold another row. So nothing
//! of them enters: who writes leaves them out, the registry's door takes them out, and `decide` makes sure.

use std::borrow::Cow;

use crate::{Command, Instance};

/// The catalog format this build writes. Raised only once every member advertises it (ARCHITECTURE.md rule 4).
pub const FORMAT: u32 = 2;
/// The format of every catalog until it is raised: a log begins with it whichever build reads it.
pub const FIRST_FORMAT: u32 = 1;
/// The format that brought proxies and traffic settings.
const PROXIES: u32 = 2;

/// The instance as a catalog of that format can hold it.
pub fn strip_instance(format: u32, instance: &Instance) -> Cow<'_, Instance> {
    if format >= PROXIES || (instance.proxy.is_none() && instance.traffic.is_none()) {
        return Cow::Borrowed(instance);
    }
    Cow::Owned(Instance { proxy: None, traffic: None, ..instance.clone() })
}

/// Takes out of a Command what a catalog of that format cannot hold; says whether there was anything.
pub fn strip_command(format: u32, command: &mut Command) -> bool {
    let instances = match command {
        Command::Sync(sync) => &mut sync.instances,
        Command::Register(registration) => &mut registration.instances,
        _ => return false,
    };
    let mut stripped = false;
    for instance in instances {
        if let Cow::Owned(without) = strip_instance(format, instance) {
            *instance = without;
            stripped = true;
        }
    }
    stripped
}
