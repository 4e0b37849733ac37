//! What the compiler made of `proto/catalog.proto` and `proto/registry.proto`. Nothing here leaves this crate.
#![allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]

// The nesting follows the packages: generated code refers to other packages by it.
mod muster {
    pub(crate) mod catalog {
        pub(crate) mod v1 {
            tonic::include_proto!("muster.catalog.v1");
        }
    }
    pub(crate) mod registry {
        pub(crate) mod v1 {
            tonic::include_proto!("muster.registry.v1");
        }
    }
}

pub(crate) use muster::{catalog::v1 as catalog, registry::v1 as registry};
