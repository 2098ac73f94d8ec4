//! Text from outside, made harmless for headers, logs and mails.

/// `text` on one line of at most `max_chars` characters: control characters, line separators and
/// characters that turn the reading direction become spaces, and runs of spaces become one.
pub(super) fn one_line(text: &str, max_chars: usize) -> String {
    let visible = text.replace(is_unprintable, " ");
    let mut line = visible.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((cut, _)) = line.char_indices().nth(max_chars) {
        line.truncate(cut);
        line.truncate(line.trim_end().len());
    }
    line
}

fn is_unprintable(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A server's own words, fit for a log: one short line, with every mail address masked. Servers
/// like to repeat the recipient (`550 <ada@example.com>: no such user`).
pub(super) fn loggable(text: &str) -> String {
    const MAX_CHARS: usize = 300;
    let is_edge = |c: char| c.is_whitespace() || "<>()[]\"',;:=".contains(c);
    let masked: String = text
        .split_inclusive(is_edge)
        .map(|piece| match piece.rfind(is_edge) {
            _ if !piece.contains('@') => piece.to_owned(),
            Some(edge) => format!("(address){}", &piece[edge..]),
            None => "(address)".to_owned(),
        })
        .collect();
    one_line(&masked, MAX_CHARS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_no_controls_and_ends_at_its_limit() {
        assert_eq!(one_line(" Ada\r\nBcc: eve@x\u{2028}\u{202e}\0 ", 99), "Ada Bcc: eve@x");
        assert_eq!(one_line("Zoë Müller", 4), "Zoë");
        assert_eq!(one_line("👩\u{200d}🚀 Ada", 9), "👩\u{200d}🚀 Ada", "joined emoji stay whole");
    }

    #[test]
    fn a_servers_words_are_kept_but_not_the_addresses_in_them() {
        assert_eq!(
            loggable("550 5.1.1 <ada@example.com>: no such user\r\nrcpt=ada@example.com"),
            "550 5.1.1 <(address)>: no such user rcpt=(address)"
        );
        assert_eq!(
            loggable("Connection refused (os error 111)"),
            "Connection refused (os error 111)"
        );
    }
}
