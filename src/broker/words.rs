//! Names as others read them: in a URL, and in a command that people paste into a shell.

/// Percent-encoded: what is left are letters, digits and `-._~`.
pub(super) fn encode(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            byte => format!("%{byte:02X}"),
        })
        .collect()
}

/// One word of a shell's command, quoted where it has to be.
pub(crate) fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._/:@%+=,".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_one_word_to_a_shell() {
        for text in [
            "jobs.delay.00005s",
            "/",
            "a b",
            "it's",
            "$HOME;`ls`",
            "",
            "é*\"\\",
        ] {
            let printed = std::process::Command::new("sh")
                .args(["-c", &format!("printf %s {}", shell_word(text))])
                .output()
                .unwrap();
            assert_eq!(String::from_utf8(printed.stdout).unwrap(), text);
        }
        assert_eq!(shell_word("jobs.delay.00005s"), "jobs.delay.00005s");
    }

    #[test]
    fn what_is_encoded_is_read_back() {
        let url = url::Url::parse(&format!("http://h/{}", encode("a/b é%"))).unwrap();
        assert_eq!(url.path(), "/a%2Fb%20%C3%A9%25");
    }
}
