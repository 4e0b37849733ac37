//! One of a few words: whatever else stands there is answered with the words.

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, IntoDeserializer},
};

#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Word(String),
    Truth(bool),
    Number(i64),
    Other(IgnoredAny),
}

/// Reads a word. `true` or `5` is a word that is not known: serde's own message would speak of tables.
pub(super) fn deserialize<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    let word = match Written::deserialize(deserializer)? {
        Written::Word(word) => word,
        Written::Truth(truth) => truth.to_string(),
        Written::Number(number) => number.to_string(),
        Written::Other(_) => "this".to_owned(),
    };
    T::deserialize(word.into_deserializer())
}
