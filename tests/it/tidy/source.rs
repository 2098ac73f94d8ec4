//! Rust source as a list of tokens: enough to see which module names which, and how long a
//! function is, without a parser and its dependencies. What macros would expand to is not seen.

use std::iter::Peekable;
use std::path::{Path, PathBuf};
use std::str::Chars;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// An identifier, a keyword or a number.
    Word,
    /// What stands between the quotes of a string.
    Text,
    /// One punctuation character, or `::`.
    Mark,
}

#[derive(Debug, Clone)]
pub struct Token {
    pub kind: Kind,
    pub text: String,
    pub line: usize,
}

impl Token {
    pub fn is(&self, text: &str) -> bool {
        self.kind != Kind::Text && self.text == text
    }

    pub fn is_word(&self) -> bool {
        self.kind == Kind::Word
    }

    fn opens(&self) -> bool {
        self.kind == Kind::Mark && matches!(self.text.as_str(), "{" | "(" | "[")
    }

    fn closes(&self) -> bool {
        self.kind == Kind::Mark && matches!(self.text.as_str(), "}" | ")" | "]")
    }
}

/// All tokens of a file. Comments, character literals and lifetimes are left out.
pub fn tokens(source: &str) -> Vec<Token> {
    let mut reader = Reader { chars: source.chars().peekable(), line: 1, found: Vec::new() };
    while reader.step() {}
    reader.found
}

struct Reader<'a> {
    chars: Peekable<Chars<'a>>,
    line: usize,
    found: Vec<Token>,
}

impl Reader<'_> {
    fn next(&mut self) -> Option<char> {
        let next = self.chars.next();
        if next == Some('\n') {
            self.line += 1;
        }
        next
    }

    fn take(&mut self, expected: char) -> bool {
        let found = self.chars.peek() == Some(&expected);
        if found {
            self.next();
        }
        found
    }

    fn push(&mut self, kind: Kind, text: String, line: usize) {
        self.found.push(Token { kind, text, line });
    }

    fn step(&mut self) -> bool {
        let line = self.line;
        let Some(first) = self.next() else { return false };
        match first {
            '/' if self.take('/') => while self.next().is_some_and(|c| c != '\n') {},
            '/' if self.take('*') => self.block_comment(),
            '"' => self.string(line),
            '\'' => self.quote(),
            ':' if self.take(':') => self.push(Kind::Mark, "::".into(), line),
            c if c.is_whitespace() => {}
            c if c.is_alphanumeric() || c == '_' => self.word(c, line),
            c => self.push(Kind::Mark, c.into(), line),
        }
        true
    }

    /// Rust's block comments nest.
    fn block_comment(&mut self) {
        let mut depth = 1;
        while depth > 0 {
            match self.next() {
                Some('/') if self.take('*') => depth += 1,
                Some('*') if self.take('/') => depth -= 1,
                Some(_) => {}
                None => return,
            }
        }
    }

    fn string(&mut self, line: usize) {
        let mut text = String::new();
        while let Some(c) = self.next() {
            match c {
                '"' => break,
                '\\' => text.extend(self.next()),
                c => text.push(c),
            }
        }
        self.push(Kind::Text, text, line);
    }

    /// `hashes` are the ones between `r` and the opening quote, which is read already.
    fn raw_string(&mut self, hashes: usize, line: usize) {
        let end = format!("\"{}", "#".repeat(hashes));
        let mut text = String::new();
        while let Some(c) = self.next() {
            text.push(c);
            if text.ends_with(&end) {
                text.truncate(text.len() - end.len());
                break;
            }
        }
        self.push(Kind::Text, text, line);
    }

    /// After a single quote: a character if another quote follows it, else a lifetime or label.
    fn quote(&mut self) {
        if self.take('\\') {
            self.next();
            while self.next().is_some_and(|c| c != '\'') {}
            return;
        }
        self.next();
        if !self.take('\'') {
            while self.chars.peek().is_some_and(|c| c.is_alphanumeric() || *c == '_') {
                self.next();
            }
        }
    }

    fn word(&mut self, first: char, line: usize) {
        let mut text = String::from(first);
        while let Some(c) = self.chars.peek().filter(|c| c.is_alphanumeric() || **c == '_') {
            text.push(*c);
            self.next();
        }
        match text.as_str() {
            "b" | "c" if self.take('"') => self.string(line),
            "b" if self.take('\'') => self.quote(),
            "r" | "br" | "cr" => self.raw(text, line),
            _ => self.push(Kind::Word, text, line),
        }
    }

    /// After `r`: a raw string, a raw identifier, or a thing called `r`.
    fn raw(&mut self, prefix: String, line: usize) {
        let mut hashes = 0;
        while self.take('#') {
            hashes += 1;
        }
        if self.take('"') {
            self.raw_string(hashes, line);
        } else if hashes == 0 {
            self.push(Kind::Word, prefix, line);
        }
    }
}

/// The place of the bracket that closes the one at `open`; the end if none does.
pub fn closing(tokens: &[Token], open: usize) -> usize {
    let mut depth = 0_usize;
    for (at, token) in tokens.iter().enumerate().skip(open) {
        if token.opens() {
            depth += 1;
        } else if token.closes() {
            depth = depth.saturating_sub(1);
            if depth == 0 {
                return at;
            }
        }
    }
    tokens.len().saturating_sub(1)
}

/// The tokens without the items under `#[cfg(test)]`: tests may reach where the code may not.
pub fn without_tests(tokens: &[Token]) -> Vec<Token> {
    const ATTRIBUTE: [&str; 7] = ["#", "[", "cfg", "(", "test", ")", "]"];
    let mut kept = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let rest = &tokens[at..];
        if rest.len() >= ATTRIBUTE.len() && rest.iter().zip(ATTRIBUTE).all(|(t, text)| t.is(text)) {
            at = item_end(tokens, at + ATTRIBUTE.len()) + 1;
        } else {
            kept.push(tokens[at].clone());
            at += 1;
        }
    }
    kept
}

/// The last token of the item that starts at `at`: its semicolon, or its closing brace.
fn item_end(tokens: &[Token], mut at: usize) -> usize {
    while at < tokens.len() {
        if tokens[at].is(";") {
            return at;
        }
        if tokens[at].opens() {
            let braces = tokens[at].is("{");
            at = closing(tokens, at);
            if braces {
                let semicolon = tokens.get(at + 1).is_some_and(|token| token.is(";"));
                return if semicolon { at + 1 } else { at };
            }
        }
        at += 1;
    }
    tokens.len()
}

/// Every file below `folder` whose name ends in `.rs`, in a steady order.
pub fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder of the project") {
            let path = entry.expect("a folder of the project").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}
