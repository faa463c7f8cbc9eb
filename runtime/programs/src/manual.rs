//! What do shells and `man` know of a program? Manual pages and completions, made from the flags themselves.

use clap::{Command, ValueEnum};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};
use std::io;

/// What can be made of the flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Generate {
    /// A manual page
    Man,
    /// Completions for bash
    CompleteBash,
    /// Completions for zsh
    CompleteZsh,
    /// Completions for fish
    CompleteFish,
    /// Completions for PowerShell
    CompletePowershell,
}

impl Generate {
    /// The text for a command.
    pub fn text(self, mut command: Command) -> String {
        let mut text = Vec::new();
        let shell = match self {
            Generate::Man => {
                // Memory refuses nothing.
                manual(command, &mut text).unwrap_or_default();
                return String::from_utf8_lossy(&text).into_owned();
            }
            Generate::CompleteBash => Shell::Bash,
            Generate::CompleteZsh => Shell::Zsh,
            Generate::CompleteFish => Shell::Fish,
            Generate::CompletePowershell => Shell::PowerShell,
        };
        let name = command.get_name().to_owned();
        // clap_complete 4.6 calls a command with a dash by two names in bash: one where it sets it, one where it looks for it.
        let (set, sought) = (name.replace('-', "__"), name.replace('-', "__subcmd__"));
        clap_complete::generate(shell, &mut command, name, &mut text);
        String::from_utf8_lossy(&text).replace(&sought, &set)
    }
}

/// The page as clap would write it, with the examples that stand before the help.
fn manual(command: Command, text: &mut Vec<u8>) -> io::Result<()> {
    let examples = command.get_before_help().map(ToString::to_string);
    let subcommands: Vec<Command> = command.get_subcommands().cloned().collect();
    let name = command.get_name().to_owned();
    let man = Man::new(command);
    man.render_title(text)?;
    man.render_name_section(text)?;
    man.render_synopsis_section(text)?;
    man.render_description_section(text)?;
    if let Some(examples) = examples {
        let mut roff = Roff::new();
        roff.control("SH", ["EXAMPLES"]).control("nf", []);
        for line in examples.lines().skip(1) {
            roff.text([roman(line.trim_start())]);
        }
        roff.control("fi", []).to_writer(text)?;
    }
    man.render_options_section(text)?;
    // One page for all of it: nobody installs a page for each subcommand.
    for subcommand in subcommands {
        let title = format!("{name} {subcommand}").to_uppercase();
        let about = subcommand
            .get_about()
            .map(ToString::to_string)
            .unwrap_or_default();
        let mut roff = Roff::new();
        roff.control("SH", [title.as_str()]).text([roman(about)]);
        roff.to_writer(text)?;
        Man::new(subcommand).render_options_section(text)?;
    }
    man.render_extra_section(text)?;
    man.render_version_section(text)
}
