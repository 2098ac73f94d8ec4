//! Typed ids, so that a customer is never passed where a feature is wanted.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use utoipa::openapi::{ObjectBuilder, RefOr, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

/// Why a text is not an id. The message names what was wanted and never repeats the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidId {
    #[error("must not be empty")]
    Empty,
    #[error("must have at most {max} characters")]
    TooLong { max: usize },
    #[error("must be printable ASCII characters")]
    NotPrintable,
}

/// Checks that `text` is 1 to `max` printable ASCII characters (space to tilde).
pub fn printable_ascii(text: &str, max: usize) -> Result<(), InvalidId> {
    if text.is_empty() {
        return Err(InvalidId::Empty);
    }
    if text.len() > max {
        return Err(InvalidId::TooLong { max });
    }
    if !text.bytes().all(|b| (0x20..=0x7e).contains(&b)) {
        return Err(InvalidId::NotPrintable);
    }
    Ok(())
}

macro_rules! id {
    ($(#[doc = $doc:literal])* $name:ident, max $max:literal) => {
        $(#[doc = $doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(text: String) -> Result<Self, InvalidId> {
                printable_ascii(&text, $max)?;
                Ok(Self(text))
            }
        }

        impl std::str::FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Self::try_from(text.to_owned())
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                ObjectBuilder::new()
                    .schema_type(Type::String)
                    .description(Some(concat!($($doc),*).trim()))
                    .min_length(Some(1))
                    .max_length(Some($max))
                    .pattern(Some("^[ -~]+$"))
                    .into()
            }
        }

        impl ToSchema for $name {
            fn name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

id! {
    /// The product's own id of its paying account: 1 to 128 printable ASCII characters.
    CustomerId, max 128
}
id! {
    /// A member or seat inside a customer, to whom usage is attributed.
    EntityId, max 128
}
id! {
    /// A metered feature, as named in the plans file.
    FeatureId, max 64
}
id! {
    /// A tier, as named in the plans file.
    PlanId, max 64
}
id! {
    /// The caller's name for one run: the same key always gets the same answer.
    IdempotencyKey, max 255
}

id! {
    /// Units held for a run in flight; made here, named by the caller that settles it.
    ReservationId, max 64
}

/// The id of what came of a request under an idempotency key, as hex after `prefix_`. It follows
/// from the customer and the key, which are one request for ever, so it need not be stored.
pub fn derived_id(prefix: &str, customer_id: &CustomerId, key: &str) -> String {
    let mut digest = Sha256::new();
    digest.update(prefix.as_bytes());
    digest.update([0]);
    digest.update(customer_id.as_str().as_bytes());
    digest.update([0]);
    digest.update(key.as_bytes());
    format!("{prefix}_{}", hex::encode(&digest.finalize()[..16]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_printable_ascii_within_their_length() {
        assert!("acme-42 / eu".parse::<CustomerId>().is_ok());
        assert_eq!("".parse::<CustomerId>(), Err(InvalidId::Empty));
        assert_eq!("a\0b".parse::<CustomerId>(), Err(InvalidId::NotPrintable));
        assert_eq!(
            "а".parse::<CustomerId>(),
            Err(InvalidId::NotPrintable),
            "a Cyrillic look-alike"
        );
        assert!("x".repeat(128).parse::<CustomerId>().is_ok());
        assert_eq!("x".repeat(129).parse::<CustomerId>(), Err(InvalidId::TooLong { max: 128 }));
    }
}
