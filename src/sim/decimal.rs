//! Exact decimals for meter values: never a float until the wire demands one.

use std::fmt;
use std::iter::Sum;

/// Digits after the point that a [`Decimal`] keeps.
const PLACES: usize = 15;
/// Stripe refuses values of more significant digits than this.
const MAX_DIGITS: usize = 15;
const ONE: i128 = 10_i128.pow(PLACES as u32);

/// An exact decimal number with up to 15 places.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Decimal(i128);

/// Why a text is not a meter value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotDecimal {
    Malformed,
    TooManyDigits,
}

impl Decimal {
    /// Reads plain digits with an optional sign and point: no exponent, no spaces.
    pub(super) fn parse(text: &str) -> Result<Self, NotDecimal> {
        let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
        let (whole, fraction) = unsigned.split_once('.').unwrap_or((unsigned, ""));
        let digits = [whole, fraction].concat();
        let point_is_bare = unsigned.ends_with('.') || whole.is_empty();
        if point_is_bare || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(NotDecimal::Malformed);
        }
        if digits.trim_start_matches('0').len() > MAX_DIGITS || fraction.len() > PLACES {
            return Err(NotDecimal::TooManyDigits);
        }
        // At most 15 digits are left, so neither step can overflow.
        let number: i128 = digits.parse().map_err(|_| NotDecimal::Malformed)?;
        let scaled = number * 10_i128.pow((PLACES - fraction.len()) as u32);
        Ok(Self(if text.starts_with('-') { -scaled } else { scaled }))
    }

    /// Times `other`, rounded half up to whole units; what cannot be represented saturates.
    pub(super) fn times_rounded(self, other: Self) -> i64 {
        let product = (self.0 / ONE)
            .saturating_mul(other.0)
            .saturating_add((self.0 % ONE).saturating_mul(other.0 / ONE))
            .saturating_add((self.0 % ONE).saturating_mul(other.0 % ONE) / ONE);
        let rounded = product.saturating_add(ONE / 2).div_euclid(ONE);
        i64::try_from(rounded).unwrap_or(if rounded < 0 { i64::MIN } else { i64::MAX })
    }

    pub(super) fn from_count(count: usize) -> Self {
        Self(i128::try_from(count).unwrap_or(i128::MAX).saturating_mul(ONE))
    }

    /// The nearest float, for the one field of Stripe's that is one.
    pub(super) fn to_f64(self) -> f64 {
        self.to_string().parse().unwrap_or(f64::NAN)
    }
}

impl Sum for Decimal {
    fn sum<I: Iterator<Item = Self>>(values: I) -> Self {
        Self(values.fold(0, |sum, value| sum.saturating_add(value.0)))
    }
}

impl PartialEq<i64> for Decimal {
    fn eq(&self, other: &i64) -> bool {
        self.0 == i128::from(*other) * ONE
    }
}

/// Without trailing zeros: `12`, `0.5`, `-3.25`.
impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let (whole, fraction) = (self.0.abs() / ONE, self.0.abs() % ONE);
        if fraction == 0 {
            return write!(f, "{sign}{whole}");
        }
        let fraction = format!("{fraction:0PLACES$}");
        write!(f, "{sign}{whole}.{}", fraction.trim_end_matches('0'))
    }
}

impl fmt::Debug for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decimal(text: &str) -> Decimal {
        Decimal::parse(text).unwrap()
    }

    #[test]
    fn sums_are_exact_where_floats_are_not() {
        let tenths: Decimal = (0..10).map(|_| decimal("0.1")).sum();
        assert_eq!(tenths, 1);
        assert_eq!(decimal("-0.000000000000001").to_string(), "-0.000000000000001");
        assert_eq!(
            [decimal("5"), decimal("-7.5")].into_iter().sum::<Decimal>().to_string(),
            "-2.5"
        );
    }

    #[test]
    fn fifteen_digits_pass_and_sixteen_do_not() {
        assert_eq!(decimal("000123456789012345").to_string(), "123456789012345");
        assert_eq!(Decimal::parse("1234567890123456"), Err(NotDecimal::TooManyDigits));
        assert_eq!(Decimal::parse("1.234567890123456"), Err(NotDecimal::TooManyDigits));
        for text in ["", "-", ".5", "5.", "1e3", " 1", "1,5", "NaN", "--1", "1.2.3"] {
            assert_eq!(Decimal::parse(text), Err(NotDecimal::Malformed), "{text}");
        }
    }

    #[test]
    fn prices_are_rounded_half_up_to_whole_units() {
        assert_eq!(decimal("3").times_rounded(decimal("0.5")), 2);
        assert_eq!(decimal("1000000").times_rounded(decimal("0.025")), 25_000);
        assert_eq!(decimal("2.5").times_rounded(decimal("99")), 248);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(number in -999_999_999_i64..999_999_999, places in 0_u32..6) {
            let text = format!("{}.{:0width$}", number, 7, width = places as usize + 1);
            let value = decimal(&text);
            prop_assert_eq!(decimal(&value.to_string()), value);
        }
    }
}
