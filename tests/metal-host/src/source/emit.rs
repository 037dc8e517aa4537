//! Writing the C++: the source at its own lines, with what Metal has and C++ lacks replaced.

use std::{collections::BTreeSet, fmt::Write, ops::Range};

use super::{Instance, Item, Source, SourceError, Translation, What, at, reach, threadgroup};

impl Source<'_> {
    /// The C++ of a kernel, for the engine; nothing if there is none of that name.
    pub fn kernel(&self, name: &str) -> Result<Option<Translation>, SourceError> {
        let Some(instance) = self.instances.iter().find(|i| i.name == name) else { return Ok(None) };
        let reached = reach::reached(&self.tokens, &self.items, instance);
        let compiled = reach::compiled(&self.tokens, &self.items, &reached);
        let mut text = self.body(Some((instance.item, &compiled)))?;
        self.registration(instance, &mut text);
        let needs = reach::constants(&self.items, &reached);
        Ok(Some(Translation { text, needs }))
    }

    /// The C++ of all kernels, for the compiler to look at.
    pub fn all_kernels(&self) -> Result<String, SourceError> {
        let mut text = self.body(None)?;
        self.refuse_shared_variables_of_functions()?;
        for (nth, instance) in self.instances.iter().enumerate() {
            let expression = &instance.expression;
            let _ = writeln!(text, "inline void metal_host_lint_{nth}() {{ auto used = &{expression}; }}");
        }
        Ok(text)
    }

    /// The source: all of it, or what one kernel (an item) and the items it is made of need.
    fn body(&self, kept: Option<(usize, &BTreeSet<usize>)>) -> Result<String, SourceError> {
        let is_used = |index: usize| kept.is_none_or(|(_, compiled)| compiled.contains(&index));
        let mut text = String::from("#include \"metal_host.h\"\n");
        for (index, item) in self.items.iter().enumerate() {
            match &item.what {
                What::Kernel(kernel) if kept.is_none_or(|(only, _)| only == index) => {
                    self.function(item, kernel.body.clone(), &mut text)?;
                }
                What::Kernel(_) | What::Instantiation => self.dropped(item, &mut text),
                _ if !is_used(index) => self.dropped(item, &mut text),
                What::Function { body } => self.function(item, body.clone(), &mut text)?,
                What::FunctionConstant(c) => {
                    self.dropped(item, &mut text);
                    let (kind, name) = (&c.kind, &c.name);
                    let _ = write!(text, " static {kind} {name}; static bool {name}_is_defined;");
                }
                What::Derived(d) => {
                    self.dropped(item, &mut text);
                    let (kind, name, value) = (&d.kind, &d.name, &d.value);
                    let _ = write!(
                        text,
                        " static {kind} {name}; static void {name}_derive() {{ {name} = {value}; }}"
                    );
                }
                What::Other | What::Bracket => {
                    self.push(item.span.clone(), &mut text);
                }
            }
        }
        text.push('\n');
        Ok(text)
    }

    /// Leaves the item out, keeping the lines: their ends, and where the preprocessor says what line it is.
    fn dropped(&self, item: &Item, text: &mut String) {
        for token in &self.tokens[item.span.clone()] {
            for line in token.before.split_inclusive('\n') {
                match line.trim_start().starts_with("# ") {
                    true => text.push_str(line),
                    false => text.extend(line.chars().filter(|c| *c == '\n')),
                }
            }
            text.extend(token.text.chars().filter(|c| *c == '\n'));
        }
    }

    fn function(&self, item: &Item, body: Range<usize>, text: &mut String) -> Result<(), SourceError> {
        let variables = threadgroup::variables(&self.tokens, body)?;
        let mut index = item.span.start;
        for variable in variables {
            self.push(index..variable.span.start, text);
            text.push_str(self.tokens[variable.span.start].before);
            text.push_str(&variable.text);
            for token in &self.tokens[variable.span.start + 1..variable.span.end] {
                text.push_str(token.before);
            }
            index = variable.span.end;
        }
        self.push(index..item.span.end, text);
        Ok(())
    }

    /// Tokens as they were written; attributes are Metal's alone.
    fn push(&self, span: Range<usize>, text: &mut String) {
        for index in span {
            let token = &self.tokens[index];
            // Metal's pragmas of floating point are clang's.
            text.push_str(&token.before.replace("#pragma METAL fp ", "#pragma clang fp "));
            match token.attribute() {
                None if self.refers_to_a_thread_variable(index) => text.push_str("thread_reference"),
                None => text.push_str(token.text),
                Some(_) => text.extend(token.text.chars().filter(|c| *c == '\n')),
            }
        }
    }

    /// Whether the word at `index` begins `thread T&`, which a value that has no address yet may be passed to; the lint's dialect
    /// needs to be told this apart from `thread T*`.
    fn refers_to_a_thread_variable(&self, index: usize) -> bool {
        let after = || self.tokens[index..].iter().find(|t| ["*", "&", ",", ")", ";", "="].contains(&t.text));
        self.tokens[index].is("thread") && after().is_some_and(|t| t.is("&"))
    }

    /// Apple's compiler lets kernels alone declare variables in threadgroup memory.
    fn refuse_shared_variables_of_functions(&self) -> Result<(), SourceError> {
        for item in &self.items {
            let What::Function { body } = &item.what else { continue };
            if let Some(variable) = threadgroup::variables(&self.tokens, body.clone())?.first() {
                let place = &self.tokens[variable.span.start];
                return Err(at(
                    place,
                    "only a kernel may declare a threadgroup variable; pass a pointer instead",
                ));
            }
        }
        Ok(())
    }

    /// What the engine reads of the compiled kernel.
    fn registration(&self, instance: &Instance, text: &mut String) {
        let What::Kernel(definition) = &self.items[instance.item].what else { return };
        let _ = write!(text, "# 1 \"kernel {}\"\nMETAL_HOST_KERNEL(({})", instance.name, instance.expression);
        for (place, parameter) in definition.parameters.iter().enumerate() {
            let present = parameter
                .present
                .as_ref()
                .map_or("nullptr".into(), |c| format!("[] {{ return bool({c}); }}"));
            let (source, index) = (parameter.source, &parameter.index);
            let _ = write!(text, ",\n  METAL_HOST_PARAMETER({place}, {source}, {index}, {present})");
        }
        text.push_str(")\nstatic const ::metal_host::Constant metal_host_constants[] = {");
        let (mut constants, mut derive) = (0, String::new());
        for item in &self.items {
            match &item.what {
                What::FunctionConstant(c) => {
                    constants += 1;
                    let _ = write!(text, "METAL_HOST_CONSTANT({}{}, {}), ", item.scope, c.name, c.index);
                }
                What::Derived(d) => {
                    let _ = write!(derive, "{}{}_derive(); ", item.scope, d.name);
                }
                _ => {}
            }
        }
        let _ = write!(
            text,
            "{{}}}};\nstatic void metal_host_derive() {{ {derive}}}\n\
             extern \"C\" __attribute__((visibility(\"default\"))) const ::metal_host::Module metal_host_module = {{\n  \
             metal_host_call, metal_host_parameters, metal_host_invoke::count, metal_host_constants, {constants}, \
             metal_host_derive, &::metal_host::engine}};\n"
        );
    }
}
