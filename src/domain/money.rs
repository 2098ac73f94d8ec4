//! Money: whole minor units with their currency. Never a float.

use std::fmt;

/// An ISO 4217 currency code in lower case, as Stripe writes it (`usd`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Currency([u8; 3]);

/// Currencies that Stripe counts in whole units.
/// Source: "Zero-decimal currencies" in <https://docs.stripe.com/currencies>. That list names the
/// Ugandan shilling too, but the "Special cases" below it have the last word: 5 UGX are 500.
const ZERO_DECIMAL: [&str; 15] = [
    "bif", "clp", "djf", "gnf", "jpy", "kmf", "krw", "mga", "pyg", "rwf", "vnd", "vuv", "xaf",
    "xof", "xpf",
];
/// Currencies that Stripe counts in thousandths ("Three-decimal currencies").
const THREE_DECIMAL: [&str; 5] = ["bhd", "jod", "kwd", "omr", "tnd"];
/// Currencies that have no hundredths any more, and that Stripe counts in hundredths all the same
/// ("Special cases").
const WHOLE_ONLY: [&str; 2] = ["isk", "ugx"];

impl Currency {
    pub const USD: Self = Self(*b"usd");

    pub fn code(&self) -> &str {
        std::str::from_utf8(&self.0).expect("only ASCII letters are let in")
    }

    /// How many decimal digits the minor unit stands for: 2 for dollars, 0 for yen.
    pub fn decimals(&self) -> u32 {
        let code = self.code();
        if ZERO_DECIMAL.contains(&code) {
            0
        } else if THREE_DECIMAL.contains(&code) {
            3
        } else {
            2
        }
    }

    /// Stripe charges only multiples of this many minor units: of three decimals the last must be
    /// zero, and some currencies have whole units only.
    /// Source: <https://docs.stripe.com/currencies>, "Three-decimal currencies" and "Special cases".
    pub fn charge_step_minor(&self) -> i64 {
        match self.decimals() {
            3 => 10,
            _ if WHOLE_ONLY.contains(&self.code()) => 100,
            _ => 1,
        }
    }

    fn symbol(self) -> Option<&'static str> {
        match self.code() {
            "usd" => Some("$"),
            "eur" => Some("€"),
            "gbp" => Some("£"),
            "jpy" => Some("¥"),
            _ => None,
        }
    }
}

/// Why a text is not a currency or an amount.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidMoney {
    #[error("must be a three-letter currency code such as \"usd\"")]
    Currency,
    #[error("must be a decimal amount such as \"29.00\" with at most {decimals} decimals")]
    Amount { decimals: u32 },
}

impl std::str::FromStr for Currency {
    type Err = InvalidMoney;

    fn from_str(text: &str) -> Result<Self, InvalidMoney> {
        let bytes: [u8; 3] = text.as_bytes().try_into().map_err(|_| InvalidMoney::Currency)?;
        if !bytes.iter().all(u8::is_ascii_alphabetic) {
            return Err(InvalidMoney::Currency);
        }
        Ok(Self(bytes.map(|b| b.to_ascii_lowercase())))
    }
}

/// An amount of money in the currency's minor unit (cents for dollars, yen for yen).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Money {
    pub minor: i64,
    pub currency: Currency,
}

/// Reads a non-negative decimal such as `29.00` as an integer of `10^-decimals` units.
/// `None` if it is not one, has more decimals than that, or does not fit.
pub fn parse_decimal(text: &str, decimals: u32) -> Option<i64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    let decimals = decimals as usize;
    if whole.is_empty() || !digits(whole) || !digits(fraction) || fraction.len() > decimals {
        return None;
    }
    if text.ends_with('.') {
        return None;
    }
    format!("{whole}{fraction:0<decimals$}").parse().ok()
}

impl Money {
    /// Reads `amount` (such as `"29.00"`) in `currency`.
    pub fn parse(amount: &str, currency: Currency) -> Result<Self, InvalidMoney> {
        let decimals = currency.decimals();
        let minor = parse_decimal(amount, decimals).ok_or(InvalidMoney::Amount { decimals })?;
        Ok(Self { minor, currency })
    }
}

/// `$99`, `$29.50`, `¥3000`, `129.00 SEK`: round amounts without their empty decimals where a
/// symbol stands in front.
impl fmt::Display for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let decimals = self.currency.decimals();
        let unit = 10_i64.pow(decimals);
        let sign = if self.minor < 0 { "-" } else { "" };
        let (whole, rest) = (
            self.minor.unsigned_abs() / unit.unsigned_abs(),
            self.minor.unsigned_abs() % unit.unsigned_abs(),
        );
        let amount = if rest == 0 {
            whole.to_string()
        } else {
            format!("{whole}.{rest:0width$}", width = decimals as usize)
        };
        match self.currency.symbol() {
            Some(symbol) => write!(f, "{sign}{symbol}{amount}"),
            None => write!(f, "{sign}{amount} {}", self.currency.code().to_ascii_uppercase()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn money(amount: &str, currency: &str) -> String {
        Money::parse(amount, currency.parse().unwrap()).unwrap().to_string()
    }

    #[test]
    fn amounts_are_shown_as_people_write_them() {
        assert_eq!(money("99.00", "usd"), "$99");
        assert_eq!(money("29.5", "USD"), "$29.50");
        assert_eq!(money("3000", "jpy"), "¥3000");
        assert_eq!(money("129.00", "sek"), "129 SEK");
        assert_eq!(money("5", "ugx"), "5 UGX");
    }

    #[test]
    fn minor_units_are_those_that_stripe_counts_in() {
        for (currency, minor, step) in [
            ("usd", 500, 1),
            ("jpy", 5, 1),
            ("kwd", 5000, 10),
            ("isk", 500, 100),
            ("ugx", 500, 100),
        ] {
            let money = Money::parse("5", currency.parse().unwrap()).unwrap();
            let found = (money.minor, money.currency.charge_step_minor());
            assert_eq!(found, (minor, step), "{currency}");
        }
    }

    #[test]
    fn amounts_that_the_currency_cannot_hold_are_refused() {
        let usd: Currency = "usd".parse().unwrap();
        for bad in ["29.001", "-1", "", ".5", "1e3", "5.", "99999999999999999999"] {
            assert_eq!(Money::parse(bad, usd), Err(InvalidMoney::Amount { decimals: 2 }), "{bad}");
        }
        assert!(Money::parse("3000.5", "jpy".parse().unwrap()).is_err());
        assert!("dollars".parse::<Currency>().is_err());
    }
}
