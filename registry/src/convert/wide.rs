//! Reads of more than a Scope holds.

use muster_catalog::Wide;

use super::{ConvertError, name, row, text};
use crate::proto::{
    catalog,
    registry::{self as pb, read_request::What},
};

impl From<&Wide> for What {
    fn from(wide: &Wide) -> Self {
        match wide {
            Wide::Node(name) => Self::Node(name.to_string()),
            Wide::Checks(status) => {
                Self::Checks(pb::Checks { status: status.map(|status| row::status(status).into()) })
            }
            Wide::Instances(meta) => {
                let pairs = meta.iter().map(|(key, value)| (key.to_string(), value.to_string()));
                let node_meta = pairs.map(|(key, value)| catalog::Pair { key, value }).collect();
                Self::Instances(pb::Instances { node_meta })
            }
        }
    }
}

impl TryFrom<What> for Wide {
    type Error = ConvertError;

    fn try_from(what: What) -> Result<Self, ConvertError> {
        Ok(match what {
            What::Node(node) => Self::Node(name("read.node", &node)?),
            What::Checks(checks) => {
                Self::Checks(checks.status.map(|status| row::from_status("read.status", status)).transpose()?)
            }
            What::Instances(instances) => {
                let pairs = instances.node_meta.iter();
                Self::Instances(pairs.map(|pair| (text(&pair.key), text(&pair.value))).collect())
            }
        })
    }
}
