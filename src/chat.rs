//! `qat chat`: a conversation with a model, in a terminal or through a pipe.
//!
//! Answers go to standard output as they are written, everything else to standard error. Invariant: before each answer the model has read
//! exactly what its chat template makes of the conversation; what it has read before is not read again.

mod input;

use std::path::Path;

use anyhow::{anyhow, bail};
use input::{Input, Said};
use qat_infer::chat::{ChatTemplate, Endings, Message};
use qat_infer::files::{Tokenizer, write_file_atomic};
use qat_infer::generate::{SINKS, Windowed};
use qat_infer::{Choice, Opened, Runtime, RuntimeMatrix, with_runtime};
use serde_json::json;

use crate::generate::LONGEST_DEFAULT;
use crate::writing::{Answer, Pen, Setup, known, listen, print};
use crate::{Ending, cli};

const HELP: &str = "/reset begins anew, /save FILE keeps the conversation as a line of JSON, /exit leaves (so does Ctrl-D).\n\
    A line that ends with \\ goes on; \"\"\" begins and ends a text of several lines. Ctrl-C ends an answer.";

/// Runs the command.
pub fn run(args: &cli::Chat) -> anyhow::Result<Ending> {
    let chosen = args.writing.device.parse::<Choice>()?.open()?;
    crate::no_run(&args.dir)?;
    with_runtime!(&chosen, runtime => run_on(runtime, args))
}

fn run_on<R: Runtime>(runtime: &R, args: &cli::Chat) -> anyhow::Result<Ending> {
    let flags = &args.writing;
    let setup = Setup::new(flags, 0.7)?;
    let mut model = Opened::<R::Matrix>::open(&args.dir)?;
    if let Some(activations) = flags.activations.chosen() {
        model.set_activations(activations);
    }
    let tokenizer = model.tokenizer()?;
    let turns = Turns::of(&model, &tokenizer)?;
    let context = flags.context.unwrap_or(model.decoder.config.max_position_embeddings.min(LONGEST_DEFAULT));
    let sequence = runtime.sequence(&model.decoder, context, flags.kv)?;
    let mut past = Windowed::new(sequence, context, SINKS.min(context / 2))?;
    let system = args.system.as_deref().map(|text| Message::new("system", text));
    let begin = turns.beginning(&tokenizer, system.as_ref())?;
    past.set_sinks(begin.len().max(SINKS));
    if let (Some(path), Some(model)) = (&flags.prompt_cache, setup.identity(&model, flags)?) {
        if begin.is_empty() {
            bail!(
                "--prompt-cache: the template writes nothing before a question; say something with --system"
            );
        }
        let whole = [&begin[..], &[0]].concat();
        known(path, &model, &whole, begin.len(), &mut past)?;
    }
    let pen = Pen {
        setup: &setup,
        tokenizer: &tokenizer,
        stops: &turns.endings.tokens,
        stop_words: &turns.endings.words,
        most: args.tokens.min(context),
    };
    listen()?;
    let messages: Vec<Message> = system.into_iter().collect();
    let mut chat = Chat { pen, turns: &turns, past, context, beginning: messages.len(), messages };
    chat.talk()?;
    let [device, isa] = runtime.describe()?;
    eprintln!("{device} ({isa})");
    Ok(Ending::Done)
}

/// How the model takes turns.
pub struct Turns {
    template: ChatTemplate,
    /// What ends an answer.
    pub endings: Endings,
}

impl Turns {
    /// Those of `model`: its template, its end-of-text tokens, and what the template writes after an answer.
    pub fn of<M: RuntimeMatrix>(model: &Opened<M>, tokenizer: &Tokenizer) -> anyhow::Result<Self> {
        let Some(template) = model.chat_template()? else {
            bail!(
                "{} has no chat template (chat_template.jinja, or chat_template in tokenizer_config.json): it was not made to talk; \
                 let it go on with a text (qat generate), or give it the template that it was trained with",
                model.origin.display()
            );
        };
        let endings = Endings::of(&template, tokenizer, &model.decoder.config.eos_token_ids)?;
        Ok(Self { template, endings })
    }

    /// The tokens of a conversation, up to where the answer begins.
    pub fn ids(&self, tokenizer: &Tokenizer, messages: &[Message]) -> anyhow::Result<Vec<u32>> {
        encoded(tokenizer, &self.template.render(messages, true)?)
    }

    /// What all conversations with this system's message begin with.
    fn beginning(&self, tokenizer: &Tokenizer, system: Option<&Message>) -> anyhow::Result<Vec<u32>> {
        let ids = |question: &str| {
            let question = Message::new("user", question);
            self.ids(tokenizer, &system.cloned().into_iter().chain([question]).collect::<Vec<_>>())
        };
        let (one, other) = (ids("Yes.")?, ids("No, 17")?);
        let same = one.iter().zip(&other).take_while(|(a, b)| a == b).count();
        Ok(one[..same].to_vec())
    }
}

/// The template writes all special tokens itself.
fn encoded(tokenizer: &Tokenizer, text: &str) -> anyhow::Result<Vec<u32>> {
    let encoding = tokenizer.encode(text, false).map_err(|e| anyhow!("the conversation: {e}"))?;
    Ok(encoding.get_ids().to_vec())
}

/// A conversation under way.
struct Chat<'a> {
    pen: Pen<'a>,
    turns: &'a Turns,
    past: Windowed<'a>,
    context: usize,
    /// Messages that stay when it begins anew: the system's.
    beginning: usize,
    messages: Vec<Message>,
}

impl Chat<'_> {
    /// Until nobody says any more.
    fn talk(&mut self) -> anyhow::Result<()> {
        let mut input = Input::new()?;
        if input.is_terminal() {
            eprintln!("{HELP}");
        }
        while let Some(said) = input.next()? {
            match said {
                Said::Text(text) => self.answer(text)?,
                Said::Command(command) => {
                    if let Err(e) = self.obey(&command) {
                        eprintln!("{e:#}");
                    }
                }
            }
        }
        Ok(())
    }

    fn obey(&mut self, command: &str) -> anyhow::Result<()> {
        let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        match (name, rest.trim()) {
            ("/help", _) => eprintln!("{HELP}"),
            ("/reset", _) => {
                self.messages.truncate(self.beginning);
                eprintln!("(a new conversation)");
            }
            ("/save", "") => bail!("/save FILE: wants a file"),
            ("/save", file) => {
                let line = json!({"messages": self.messages}).to_string() + "\n";
                write_file_atomic(Path::new(file), line.as_bytes())?;
                eprintln!("(wrote {} messages to {file})", self.messages.len());
            }
            (name, _) => bail!("there is no {name}; {HELP}"),
        }
        Ok(())
    }

    /// Answers `text`. A template that doesn't take it leaves the conversation as it was.
    fn answer(&mut self, text: String) -> anyhow::Result<()> {
        self.messages.push(Message::new("user", &text));
        let ids = match self.fitting() {
            Ok(ids) => ids,
            Err(e) => {
                self.messages.pop();
                eprintln!("{e:#}");
                return Ok(());
            }
        };
        let rest = self.past.return_to(&ids).to_vec();
        let before = ids.len() - rest.len();
        let answer = self.pen.answer(&mut self.past, &ids[..before], &rest)?;
        print("\n")?;
        self.tell(&answer, rest.len(), before);
        self.messages.push(Message::new("assistant", &answer.text));
        Ok(())
    }

    /// The conversation's tokens; its oldest turns are forgotten until half of the context is left for an answer, or as much as one may take.
    fn fitting(&mut self) -> anyhow::Result<Vec<u32>> {
        let room = self.context - self.pen.most.min(self.context / 2);
        let mut forgotten = 0;
        loop {
            let ids = self.turns.ids(self.pen.tokenizer, &self.messages)?;
            // A question, its answer, and the question that is to be answered.
            let can_forget = self.messages.len() >= self.beginning + 3;
            if ids.len() <= room || !can_forget {
                if forgotten > 0 {
                    eprintln!(
                        "(forgot the {forgotten} oldest turns: the context of {} tokens is full)",
                        self.context
                    );
                }
                return Ok(ids);
            }
            self.messages.drain(self.beginning..self.beginning + 2);
            forgotten += 1;
        }
    }

    fn tell(&self, answer: &Answer, read: usize, before: usize) {
        eprintln!("({})", answer.summary(read, before));
        if let Some(verdict) = self.pen.setup.verdict(answer) {
            eprintln!("({verdict})");
        }
    }
}
