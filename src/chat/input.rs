//! What is said to a chat: lines of a terminal with a line editor, or of a pipe.
//!
//! Knows no model. Invariant: in a terminal and in a pipe the same lines are the same texts.

use std::collections::VecDeque;
use std::io::{IsTerminal as _, stdin, stdout};

use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

/// What begins and ends a text of several lines.
const FENCE: &str = "\"\"\"";

/// Something said.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    /// To the model.
    Text(String),
    /// To the program, with its slash.
    Command(String),
}

/// Where lines come from.
pub struct Input {
    editor: Option<DefaultEditor>,
    /// Lines of a text that isn't complete.
    open: VecDeque<String>,
    fenced: bool,
    /// Whether Ctrl-C was pressed and nothing said since.
    warned: bool,
}

/// A line, or why there is none.
enum Line {
    Is(String),
    Interrupt,
    End,
}

impl Input {
    /// Standard input.
    pub fn new() -> anyhow::Result<Self> {
        let is_terminal = stdin().is_terminal() && stdout().is_terminal();
        let editor = is_terminal.then(DefaultEditor::new).transpose()?;
        Ok(Self { editor, open: VecDeque::new(), fenced: false, warned: false })
    }

    /// Whether somebody sits there.
    pub fn is_terminal(&self) -> bool {
        self.editor.is_some()
    }

    /// What is said next; none when no more is.
    pub fn next(&mut self) -> anyhow::Result<Option<Said>> {
        loop {
            let prompt = if self.open.is_empty() && !self.fenced { "> " } else { "… " };
            match self.line(prompt)? {
                Line::End => return Ok(self.take()),
                Line::Interrupt if self.warned => return Ok(None),
                Line::Interrupt => {
                    self.warned = self.open.is_empty() && !self.fenced;
                    if self.warned {
                        eprintln!("(Ctrl-C again, or /exit, to leave)");
                    }
                    (self.fenced, self.open) = (false, VecDeque::new());
                }
                Line::Is(line) => {
                    self.warned = false;
                    match self.hear(line) {
                        Some(Said::Command(command)) if command == "/exit" => return Ok(None),
                        Some(said) => return Ok(Some(said)),
                        None => {}
                    }
                }
            }
        }
    }

    /// Takes a line; gives what is complete with it.
    fn hear(&mut self, line: String) -> Option<Said> {
        if self.fenced {
            let Some(last) = line.trim_end().strip_suffix(FENCE) else {
                self.open.push_back(line);
                return None;
            };
            if !last.is_empty() {
                self.open.push_back(last.to_owned());
            }
            return self.take();
        }
        if self.open.is_empty() {
            if line.starts_with('/') {
                return Some(Said::Command(line.trim_end().to_owned()));
            }
            if let Some(first) = line.strip_prefix(FENCE) {
                self.fenced = true;
                if first.is_empty() {
                    return None;
                }
                return self.hear(first.to_owned());
            }
        }
        match line.strip_suffix('\\') {
            Some(begun) => {
                self.open.push_back(begun.to_owned());
                None
            }
            None => {
                self.open.push_back(line);
                self.take()
            }
        }
    }

    /// The lines so far, if they say anything.
    fn take(&mut self) -> Option<Said> {
        self.fenced = false;
        let text = std::mem::take(&mut self.open).into_iter().collect::<Vec<_>>().join("\n");
        (!text.trim().is_empty()).then_some(Said::Text(text))
    }

    fn line(&mut self, prompt: &str) -> anyhow::Result<Line> {
        let Some(editor) = &mut self.editor else {
            let mut line = String::new();
            let read = stdin().read_line(&mut line)?;
            let ended = line.strip_suffix('\n').map(|line| line.strip_suffix('\r').unwrap_or(line));
            return Ok(if read == 0 { Line::End } else { Line::Is(ended.unwrap_or(&line).to_owned()) });
        };
        match editor.readline(prompt) {
            Ok(line) => {
                // A history that can't be kept is no reason to end.
                let _ = editor.add_history_entry(&line);
                Ok(Line::Is(line))
            }
            Err(ReadlineError::Interrupted) => Ok(Line::Interrupt),
            Err(ReadlineError::Eof) => Ok(Line::End),
            Err(e) => Err(e.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(lines: &str) -> Vec<Said> {
        let mut input = Input { editor: None, open: VecDeque::new(), fenced: false, warned: false };
        let mut said: Vec<Said> = lines.lines().filter_map(|line| input.hear(line.to_owned())).collect();
        said.extend(input.take());
        said
    }

    #[test]
    fn lines_become_texts_and_commands() {
        let text = |text: &str| Said::Text(text.into());
        assert_eq!(heard("a\n\n  \nb"), [text("a"), text("b")]);
        assert_eq!(heard("a\\\nb\nc"), [text("a\nb"), text("c")]);
        assert_eq!(heard("\"\"\"\n/no command\n\nb\n\"\"\"\nc"), [text("/no command\n\nb"), text("c")]);
        assert_eq!(heard("\"\"\"a\nb\"\"\"\n\"\"\"c\"\"\""), [text("a\nb"), text("c")]);
        assert_eq!(heard("/save x \nd\\"), [Said::Command("/save x".into()), text("d")]);
        assert_eq!(heard("\"\"\"\nnever closed"), [text("never closed")]);
    }
}
