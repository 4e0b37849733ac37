//! Port numbers: what is none is answered with one that is.

use std::{collections::BTreeMap, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{Error, Unexpected, Visitor},
};

struct PortNumber(u16);

impl<'de> Deserialize<'de> for PortNumber {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Number;
        impl Visitor<'_> for Number {
            type Value = PortNumber;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a port number up to 65535, for example 8080")
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<PortNumber, E> {
                let port = u16::try_from(number).map(PortNumber);
                port.map_err(|_| E::invalid_value(Unexpected::Signed(number), &self))
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<PortNumber, E> {
                let port = u16::try_from(number).map(PortNumber);
                port.map_err(|_| E::invalid_value(Unexpected::Unsigned(number), &self))
            }
        }
        deserializer.deserialize_u16(Number)
    }
}

pub(super) fn one<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u16>, D::Error> {
    Ok(Option::<PortNumber>::deserialize(deserializer)?.map(|port| port.0))
}

pub(super) fn named<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, u16>, D::Error> {
    let ports = BTreeMap::<String, PortNumber>::deserialize(deserializer)?;
    Ok(ports.into_iter().map(|(name, port)| (name, port.0)).collect())
}
