//! Templates as models publish them, in short, and templates that nobody should render.
#![allow(clippy::unwrap_used, reason = "a test says by a panic what went wrong")]

use std::time::{Duration, Instant};

use super::*;

/// 2024-02-29, 12:34:56.
const LEAP_DAY: u64 = 1_709_210_096;

fn template(source: &str) -> ChatTemplate {
    let config = json!({"bos_token": "<s>", "eos_token": {"content": "</s>", "special": true}});
    ChatTemplate::new(Path::new("model/chat_template.jinja"), source.to_owned(), &config)
        .unwrap()
        .at(LEAP_DAY)
}

fn talk() -> Vec<Message> {
    vec![
        Message::new("system", "Be brief."),
        Message::new("user", " Hi  "),
        Message::new("assistant", "<think>\nhm\n</think>\n\nHello."),
        Message::new("user", "2 < 3 & \"x\"?"),
    ]
}

fn says(source: &str, messages: &[Message], prompt: bool, want: &str) {
    assert_eq!(template(source).render(messages, prompt).unwrap(), want);
}

/// The message of a refusal, which has to come soon.
fn refusal(source: &str) -> String {
    let begun = Instant::now();
    let found = template(source).render(&talk(), true).unwrap_err().to_string();
    assert!(begun.elapsed() < Duration::from_secs(20), "{source}: {:?}", begun.elapsed());
    found.strip_prefix("model/chat_template.jinja: ").expect("the file comes first").to_owned()
}

const CHATML: &str = "{% for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{% endfor %}
{% if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{% endif %}
";

#[test]
fn chatml() {
    says(
        CHATML,
        &talk()[..2],
        true,
        "<|im_start|>system\nBe brief.<|im_end|>\n\n<|im_start|>user\n Hi  <|im_end|>\n\n<|im_start|>assistant\n\n",
    );
    says(CHATML, &[], false, "");
}

#[test]
fn headers_a_date_and_trimmed_contents() {
    let source = "{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = '' %}
{%- endif %}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now('%d %b %Y') %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' }}
{{- 'Today Date: ' + date_string + '\\n\\n' }}
{{- system_message }}
{{- '<|eot_id|>' }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}";
    let want = "<s><|start_header_id|>system<|end_header_id|>\n\nToday Date: 29 Feb 2024\n\nBe brief.<|eot_id|>\
                <|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n";
    says(source, &talk()[..2], true, want);
}

#[test]
fn thoughts_are_dropped_from_earlier_turns() {
    let source = "{%- set ns = namespace(last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- if message.role == 'user' and not ns.done %}
        {%- set ns.last = (messages|length - 1) - loop.index0 %}
        {%- set ns.done = true %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == 'assistant' and '</think>' in content and loop.index0 < ns.last %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|' ~ message.role ~ '|>' ~ content ~ '\\n' }}
{%- endfor %}
{%- if tools %}{{ tools | tojson }}{% endif %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think></think>' }}
    {%- endif %}
{%- endif %}";
    says(
        source,
        &talk(),
        true,
        "<|system|>Be brief.\n<|user|> Hi  \n<|assistant|>Hello.\n<|user|>2 < 3 & \"x\"?\n<|assistant|>",
    );
}

const GEMMA: &str = "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}
{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}
{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}
{% endfor %}
{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}";

#[test]
fn roles_are_renamed_and_must_alternate() {
    let want = "<s><start_of_turn>user\nHi<end_of_turn>\n\n<start_of_turn>model\n<think>\nhm\n</think>\n\nHello.<end_of_turn>\n\n";
    says(GEMMA, &talk()[1..3], false, want);
    assert_eq!(refusal(GEMMA), "line 1: System role not supported");
    let twice = [Message::new("user", "a"), Message::new("user", "b")];
    let found = template(GEMMA).render(&twice, false).unwrap_err().to_string();
    assert_eq!(found, "model/chat_template.jinja: line 3: Roles must alternate");
}

#[test]
fn instructions_in_brackets_and_macros() {
    let source = "{% macro turn(role, content) %}{% if role == 'user' %}[INST] {{ content }} [/INST]{% else %}{{ content }}{{ eos_token }}{% endif %}{% endmacro %}
{{ bos_token }}{% for m in messages if m.role != 'system' %}{{ turn(m.role, m.content) }}{% if not loop.last %} {% endif %}{% endfor %}";
    says(source, &talk()[..3], true, "<s>[INST]  Hi   [/INST] <think>\nhm\n</think>\n\nHello.</s>");
}

#[test]
fn json_and_loop_controls_are_pythons() {
    let value = "{% set x = {'b': [1, 2.5, none], 'a': 'é<' } %}";
    says(&format!("{value}{{{{ x | tojson }}}}"), &[], true, "{\"b\": [1, 2.5, null], \"a\": \"é<\"}");
    says(
        &format!("{value}{{{{ x | tojson(indent=2) }}}}"),
        &[],
        true,
        "{\n  \"b\": [\n    1,\n    2.5,\n    null\n  ],\n  \"a\": \"é<\"\n}",
    );
    let loops = "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}{% if i > 4 %}{% break %}{% endif %}{{ i }}{% endfor %}";
    says(loops, &[], true, "0134");
    says("{% generation %}x{% endgeneration %}{%- generation -%} y {% endgeneration %}", &[], true, "xy ");
    says(
        "{{ 'a-b'.replace('-', '+') }}{{ ['x', 'y'] | join(', ') }}{{ 'k\nl\n\nm' | indent(2) }}",
        &[],
        true,
        "a+bx, yk\n  l\n\n  m",
    );
    says(
        "{% for k, v in {'a': 1}.items() %}{{ k ~ v }}{% endfor %}{{ 'abc'[::-1] }}{{ 'aa'.count('') }}",
        &[],
        true,
        "a1cba3",
    );
}

#[test]
fn what_is_nothing_is_so_in_python_s_way() {
    says(
        "{{ none is iterable }} {{ 'a' is iterable }} {{ none }} {{ no_such }}",
        &[],
        true,
        "False True None ",
    );
    says("{% if tools is iterable and tools | length > 0 %}x{% endif %}", &[], true, "");
    says("{{ '<{}:{:>3}>'.format('a', 7) }}", &[], true, "<a:  7>");
}

#[test]
fn the_date_is_that_of_the_clock_it_is_given() {
    let source = "{{ strftime_now('%Y-%m-%d %H:%M:%S %y %B %b %A %a %%') }}";
    says(source, &[], false, "2024-02-29 12:34:56 24 February Feb Thursday Thu %");
    for (seconds, want) in [
        (0, "1970-01-01"),
        (951_868_800, "2000-03-01"),
        (4_107_542_399, "2100-02-28"),
        (4_107_542_400, "2100-03-01"),
    ] {
        assert_eq!(template("{{ strftime_now('%Y-%m-%d') }}").at(seconds).render(&[], false).unwrap(), want);
    }
    assert_eq!(refusal("{{ strftime_now('%Q') }}"), "line 1: strftime_now: %Q is not known");
}

#[test]
fn what_is_wrong_is_told_with_its_line() {
    let broken =
        ChatTemplate::new(Path::new("t.jinja"), "a\n{% if x %}".into(), &json!({})).unwrap_err().to_string();
    assert!(broken.starts_with("t.jinja: line 2: syntax error: "), "{broken}");
    assert!(
        refusal("\n\n{{ nothing.at.all }}").starts_with("line 3: "),
        "an undefined value has no attributes"
    );
    assert!(refusal("{{ 'a' | no_such }}").starts_with("line 1: unknown filter"));
    assert!(refusal("{% include '/etc/passwd' %}").starts_with("line 1: template not found"));
    assert!(refusal("{% import 'x' as x %}").starts_with("line 1: template not found"));
    let long = ChatTemplate::new(Path::new("t.jinja"), "a".repeat(MAX_SOURCE + 1), &json!({}))
        .unwrap_err()
        .to_string();
    assert!(long.contains("at most 262144 are read"), "{long}");
}

/// Found by fuzzing: the tag was taken to end inside its opening signs.
#[test]
fn a_tag_whose_signs_share_one_is_refused() {
    for source in ["{%}", "{%} x %}", "{% if true %}{%}{% endif %}"] {
        let refused =
            ChatTemplate::new(Path::new("t.jinja"), source.into(), &json!({})).unwrap_err().to_string();
        assert!(refused.starts_with("t.jinja: line 1: syntax error: "), "{refused}");
    }
}

/// Found by fuzzing: minijinja repeats an empty list by counting.
#[test]
fn nothing_times_any_number_is_nothing() {
    says("{% set n = 9 ** 10 %}{{ [] * n }}{{ n * [] }}{{ '' * n }}", &[], true, "[][]");
    says(
        "{% set n = 3 %}{{ [0] * n }}{{ n * 'ab' }}{{ '-' * 80 }}{{ [1] * 2 }}",
        &[],
        true,
        &format!("[0, 0, 0]ababab{}[1, 1]", "-".repeat(80)),
    );
    assert!(refusal("{% set n = 'a' %}{{ [] * n }}").contains("only be multiplied with integers"));
}

/// The compiler works constants out, and goes as deep as expressions are nested, before anything is metered.
#[test]
fn what_would_keep_the_compiler_busy_or_fill_the_stack_is_refused() {
    let many = |begin: &str, again: &str, end: &str| format!("{begin}{}{end}", again.repeat(20_000));
    for (source, says) in [
        ("{{ [] * 9**10 }}".to_owned(), "line 1: a constant is repeated"),
        ("{{ ([1] * 10**10) == ([1] * 10**10) }}".to_owned(), "a constant is repeated"),
        ("{{ [1, 2] * 600 }}".to_owned(), "a constant is repeated"),
        ("{{ 'a' * 999 * 999 }}".to_owned(), "a constant is repeated"),
        ("\n{% if x %}{{ 2 * ('' or '-') * 1000 }}{% endif %}".to_owned(), "line 2: a constant is repeated"),
        (many("{{ ", "'a' * 100 ~ ", "1 }}"), "one tag has more than 1000"),
        (many("{{ ", "1+", "1 }}"), "one tag has more than 1000"),
        (many("{{ ", "- ", "1 }}"), "one tag has more than 1000"),
        (many("{{ ", "not ", "1 }}"), "one tag has more than 1000"),
        (many("{{ ", "x and ", "1 }}"), "one tag has more than 1000"),
        (many("{{ x", ".x", " }}"), "one tag has more than 1000"),
        (many("{{ x", "[0]", " }}"), "one tag has more than 1000"),
        (many("{% set y = 2", "**2", " %}"), "one tag has more than 1000"),
        (many("{{ ", "(", " }}"), "one tag has more than 1000"),
        (many("{% if 0 %}", "{% elif 0 %}", "{% endif %}"), "more than 256 elif"),
        (many("", "{% if 1 %}", ""), "recursion"),
        ("{{ 99999999999999999999999 }}".to_owned(), "syntax error: a number that takes more than 64 bits"),
    ] {
        let found =
            ChatTemplate::new(Path::new("t.jinja"), source.clone(), &json!({})).unwrap_err().to_string();
        assert!(found.contains(says), "{}\n{found}", &source[..60.min(source.len())]);
    }
    // As deep as it may be, on the stack of a test's thread.
    for again in ["1+", "-", "not ", "x and ", "1 ~ ", "x if x else "] {
        let within = format!("{{{{ {}1 }}}}", again.repeat(990 / again.split_whitespace().count().max(2)));
        let _ = template(&within).render(&[], true);
    }
}

#[test]
fn nothing_of_the_interpreter_is_within_reach() {
    for source in [
        "{{ ''.__class__ }}",
        "{{ messages.__class__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ debug }}",
        "{{ debug() }}",
        "{{ self.__init__ }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    ] {
        match template(source).render(&talk(), true) {
            Ok(text) => assert_eq!(text, "", "{source}"),
            Err(error) => {
                assert!(error.to_string().starts_with("model/chat_template.jinja: line 1: "), "{error}")
            }
        }
    }
}

#[test]
fn endless_work_ends_in_an_error() {
    for (source, says) in [
        // Steps.
        (
            "{% for a in range(99999) %}{% for b in range(99999) %}{% set c = b %}{% endfor %}{% endfor %}",
            "more steps",
        ),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}", "recursion"),
        ("{% for x in range(10 ** 9) %}{% endfor %}", "range"),
        // Text.
        ("{% set n = 10 ** 9 %}{{ 'a' * n }}", "makes a text of more than"),
        (
            "{% set n = namespace(t='aaaaaaaa') %}{% for i in range(60) %}{% set n.t = n.t ~ n.t %}{% endfor %}",
            "more text and lists",
        ),
        (
            "{% set n = namespace(t='aaaaaaaa') %}{% for i in range(60) %}{% set n.t = n.t + n.t %}{% endfor %}",
            "more text and lists",
        ),
        (
            "{% set n = namespace(t='a') %}{% for i in range(60) %}{% set n.t = n.t.replace('a', 'aaaaaaaaa') %}{% endfor %}",
            "makes a text of",
        ),
        (
            "{% set n = namespace(t='a') %}{% for i in range(60) %}{% set n.t = [n.t, n.t] | join('a') %}{% endfor %}",
            "a",
        ),
        (
            "{% set n = namespace(t='a') %}{% for i in range(60) %}{% set x %}{{ n.t }}{{ n.t }}{% endset %}{% set n.t = x %}{% endfor %}",
            "more text",
        ),
        ("{{ 'a\n' | indent(10 ** 9) }}", "makes a text of more than"),
        ("{{ [1] | tojson(indent=1000000000) }}", "an indent of 1000000000"),
        ("{{ '%1000000000d' | format(1) }}", "unknown filter"),
        ("{{ '{:1000000000}'.format(1) }}", "at most three digits"),
        ("{{ [1] | batch(1000000000, 'x') | list }}", "unknown filter"),
        (
            "{% for i in range(99999) %}{% for j in range(99999) %}aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa{% endfor %}{% endfor %}",
            "more steps",
        ),
        // Lists of lists.
        (
            "{% set n = namespace(t=[1]) %}{% for i in range(60) %}{% set n.t = [n.t, n.t] %}{% endfor %}{{ n.t }}",
            "more text and lists",
        ),
        (
            "{% set n = namespace(t=[1]) %}{% for i in range(60) %}{% set n.t = n.t + n.t %}{% endfor %}{{ n.t | length }}",
            "more text and lists",
        ),
        (
            "{% set n = namespace(t={}) %}{% for i in range(60) %}{% set n.t = {'a': n.t} %}{% endfor %}",
            "nests lists and maps",
        ),
        ("{% set n = 10 ** 9 %}{{ ([1] * n) | list }}", "more text and lists"),
        ("{% set n = 10 ** 18 %}{{ [1, 2, 3] * n * n }}", "more text and lists"),
        ("{% set n = namespace() %}{% set n.self = n %}{{ n }}", "nests lists and maps"),
        (
            "{% set n = namespace() %}{% set n.self = n %}{{ n == n.self or n | tojson }}",
            "nests lists and maps",
        ),
    ] {
        let found = refusal(source);
        assert!(found.contains(says), "{source}\n{found}");
    }
}

#[test]
fn a_long_conversation_is_within_the_bounds() {
    let mut messages = Vec::new();
    for _ in 0..500 {
        messages.push(Message::new("user", &"word ".repeat(400)));
        messages.push(Message::new("assistant", &"word ".repeat(400)));
    }
    let text = template(CHATML).render(&messages, true).unwrap();
    assert!(text.len() > 2_000_000);
    template(GEMMA).render(&messages, true).unwrap();
}

#[test]
fn a_directory_s_template_is_its_file_or_its_tokenizer_s() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    assert!(ChatTemplate::of(dir.path()).unwrap().is_none());
    write("tokenizer_config.json", r#"{"chat_template": "one {{ eos_token }}", "eos_token": "</s>"}"#);
    let source = || ChatTemplate::of(dir.path()).unwrap().unwrap().source().to_owned();
    assert_eq!(source(), "one {{ eos_token }}");
    assert_eq!(ChatTemplate::of(dir.path()).unwrap().unwrap().render(&[], true).unwrap(), "one </s>");
    write(
        "tokenizer_config.json",
        r#"{"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "two"}]}"#,
    );
    assert_eq!(source(), "two");
    write("chat_template.jinja", "three");
    assert_eq!(source(), "three");
    write("tokenizer_config.json", "{");
    let broken = ChatTemplate::of(dir.path()).unwrap_err().to_string();
    assert!(broken.contains("tokenizer_config.json: "), "{broken}");
}
