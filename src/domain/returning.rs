//! Where a customer may be sent back to after an upgrade: nowhere but to the product's own sites,
//! or a link of ours would lend its name to anybody's page.

use reqwest::Url;

/// The longest address taken, in bytes: it becomes part of a link.
pub const MAX_RETURN_URL: usize = 1000;

/// The query parameter that says on return how it went.
pub const MARKER: &str = "tollgate_upgrade";

/// The origins that customers may be sent back to.
#[derive(Debug, Clone)]
pub struct ReturnOrigins(Vec<String>);

impl ReturnOrigins {
    /// Our own origin, which is that of `public_url`, and `others` as browsers write origins.
    pub fn new(public_url: &str, others: &[String]) -> Self {
        let own = Url::parse(public_url).ok().map(|url| url.origin().ascii_serialization());
        Self(own.into_iter().chain(others.iter().cloned()).collect())
    }

    /// The address, if it is an absolute web address on one of these origins.
    ///
    /// The parser forgives what browsers forgive, such as tabs and backslashes; nobody who means
    /// well needs it to. What is sent on is the address as it was understood here, so that no
    /// other reader can understand it otherwise.
    pub fn check(&self, text: &str) -> Option<ReturnUrl> {
        let strange = |c: char| c.is_whitespace() || c.is_control() || c == '\\';
        if text.len() > MAX_RETURN_URL || text.contains(strange) {
            return None;
        }
        let url = Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https"))?;
        let bare = url.username().is_empty() && url.password().is_none();
        let known = self.0.contains(&url.origin().ascii_serialization());
        (bare && known).then_some(ReturnUrl(url))
    }
}

/// An address that customers may be sent back to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReturnUrl(Url);

/// How it went, as far as the way back tells: what is so, only Stripe says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Return {
    /// The customer went through with it.
    Done,
    /// The customer turned back.
    Canceled,
}

impl ReturnUrl {
    /// A page of ours, which needs no leave. `None` if it is no address.
    pub fn ours(page: &str) -> Option<Self> {
        Url::parse(page).ok().map(Self)
    }

    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// The address with `tollgate_upgrade=done` or `tollgate_upgrade=canceled` in its query.
    pub fn with(&self, how: Return) -> String {
        let word = match how {
            Return::Done => "done",
            Return::Canceled => "canceled",
        };
        let mut url = self.0.clone();
        url.query_pairs_mut().append_pair(MARKER, word);
        url.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origins() -> ReturnOrigins {
        let others = ["https://app.example.com".to_owned(), "http://localhost:3000".to_owned()];
        ReturnOrigins::new("https://billing.example.com/gate", &others)
    }

    #[test]
    fn our_own_origin_and_the_listed_ones_are_taken() {
        for good in [
            "https://billing.example.com/",
            "https://app.example.com/settings?tab=plan#top",
            "https://APP.example.com:443/settings",
            "http://localhost:3000/x",
        ] {
            assert!(origins().check(good).is_some(), "{good}");
        }
    }

    #[test]
    fn whatever_else_looks_like_them_is_not() {
        let long = format!("https://app.example.com/{}", "x".repeat(MAX_RETURN_URL));
        for bad in [
            "",
            "/settings",
            "//app.example.com",
            "http://app.example.com/",
            "https://app.example.com:8443/",
            "https://app.example.com.evil.example/",
            "https://evil.example/https://app.example.com/",
            "https://app.example.com@evil.example/",
            "https://user@app.example.com/",
            "https://evil.example\\@app.example.com/",
            "https://app.example.com\\.evil.example/",
            "https:\t//app.example.com/",
            " https://app.example.com/",
            "javascript:alert(1)",
            "data:text/html,x",
            "blob:https://app.example.com/x",
            &long,
        ] {
            assert_eq!(origins().check(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_way_back_says_how_it_went_beside_what_was_there() {
        let back = origins().check("https://app.example.com/settings?tab=plan#top").unwrap();
        assert_eq!(
            back.with(Return::Done),
            "https://app.example.com/settings?tab=plan&tollgate_upgrade=done#top"
        );
        let bare = origins().check("https://app.example.com").unwrap();
        assert_eq!(
            bare.with(Return::Canceled),
            "https://app.example.com/?tollgate_upgrade=canceled"
        );
    }
}
