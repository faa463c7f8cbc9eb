//! Instructions with a meter: each whose cost depends on its operands is preceded by a call that weighs them.
//!
//! The calls are filters whose names no template can write. minijinja's own operators stay what they are: a
//! weigher gives back the operands that it was given. Filters stand for those that Python has otherwise.

use super::numbers;
use super::weigh::{self, charge, iterate, length, make, number, read, settle, walk, walk_data};
use minijinja::machinery::{Instruction, Instructions};
use minijinja::value::{Rest, ValueKind};
use minijinja::{Environment, Error, State, Value};

/// No place in the cache of filters.
const UNCACHED: u8 = u8::MAX;

/// What weighs the operands of an instruction, by the name of its filter.
type Weigher = fn(&[Value]) -> Result<(), Error>;

const WEIGHERS: [(&str, Weigher); 11] = [
    ("<add>", add),
    ("<multiply>", multiply),
    ("<compare>", compare),
    ("<contains>", contains),
    ("<item>", item),
    ("<slice>", slice),
    ("<call>", call),
    ("<loop>", each),
    ("<spread>", spread),
    ("<attribute>", attribute),
    ("<nest>", nest),
];
const CONCAT: &str = "<concat>";
const REMAINDER: &str = "<remainder>";
const QUOTIENT: &str = "<quotient>";
const SETTLE: &str = "<settle>";

/// Registers what [`meter`] puts into instructions.
pub(super) fn register(environment: &mut Environment<'_>) {
    for (name, weigher) in WEIGHERS {
        let give_back = move |_: &State<'_, '_>, Rest(mut operands): Rest<Value>| -> Result<Value, Error> {
            weigher(&operands)?;
            Ok(if operands.len() == 1 {
                operands.pop().unwrap_or_default()
            } else {
                operands.reverse();
                Value::from(operands)
            })
        };
        environment.add_filter(name, give_back);
    }
    environment.add_filter(CONCAT, |Rest(operands): Rest<Value>| concat(&operands));
    environment.add_filter(REMAINDER, |Rest(operands): Rest<Value>| {
        numbers::remainder(&operands)
    });
    environment.add_filter(QUOTIENT, |Rest(operands): Rest<Value>| {
        numbers::floor_division(&operands)
    });
    environment.add_filter(SETTLE, settle);
}

/// The same instructions with meters.
pub(super) fn meter<'source>(instructions: &Instructions<'source>) -> Instructions<'source> {
    let count = u32::try_from(instructions.len()).unwrap_or(u32::MAX);
    let all: Vec<&Instruction<'source>> = (0..count).filter_map(|at| instructions.get(at)).collect();
    let mut metered = Instructions::new(instructions.name(), instructions.source());
    let mut places = Vec::with_capacity(all.len() + 1);
    let recursive = all
        .iter()
        .any(|one| matches!(one, Instruction::PushLoop(flags) if flags & RECURSIVE != 0));
    for (index, instruction) in all.iter().enumerate() {
        places.push(u32::try_from(metered.len()).unwrap_or(u32::MAX));
        let before = index.checked_sub(1).and_then(|before| all.get(before));
        let at = u32::try_from(index).unwrap_or(u32::MAX);
        let line = instructions
            .get_line(at)
            .and_then(|line| u16::try_from(line).ok());
        for instruction in with_meter(instruction, before.copied(), recursive) {
            match (instructions.get_span(at), line) {
                (Some(span), _) => metered.add_with_span(instruction, span),
                (None, Some(line)) => metered.add_with_line(instruction, line),
                (None, None) => metered.add(instruction),
            };
        }
    }
    places.push(u32::try_from(metered.len()).unwrap_or(u32::MAX));
    let last = u32::try_from(metered.len()).unwrap_or(u32::MAX);
    for at in 0..last {
        if let Some(target) = metered.get_mut(at).and_then(target) {
            let moved = usize::try_from(*target).ok().and_then(|at| places.get(at));
            *target = moved.copied().unwrap_or(last);
        }
    }
    metered
}

/// Where an instruction may go on.
fn target<'a>(instruction: &'a mut Instruction<'_>) -> Option<&'a mut u32> {
    match instruction {
        Instruction::Iterate(to)
        | Instruction::Jump(to)
        | Instruction::JumpIfFalse(to)
        | Instruction::JumpIfFalseOrPop(to)
        | Instruction::JumpIfTrueOrPop(to)
        | Instruction::BuildMacro(_, to, _) => Some(to),
        _ => None,
    }
}

/// The flag of a loop that can call itself.
const RECURSIVE: u8 = 2;

/// An instruction with what weighs its operands before it, and settles its result behind it.
fn with_meter<'source>(
    instruction: &Instruction<'source>,
    before: Option<&Instruction<'source>>,
    recursive: bool,
) -> Vec<Instruction<'source>> {
    let own = || instruction.clone();
    let filter = |name, count| Instruction::ApplyFilter(name, Some(count), UNCACHED);
    let weigh = |name, count: u16| match count {
        0 => Vec::new(),
        1 => vec![filter(name, 1)],
        // The list that the weigher gives is laid on the stack again, its last member first.
        _ => vec![filter(name, count), Instruction::UnpackList(usize::from(count))],
    };
    let weighed = |name, count, settled: bool| {
        let mut all = weigh(name, count);
        all.push(own());
        if settled {
            all.push(filter(SETTLE, 1));
        }
        all
    };
    match instruction {
        // So that it passes by the formatter.
        Instruction::EmitRaw(text) => vec![Instruction::LoadConst(Value::from(*text)), Instruction::Emit],
        Instruction::Add => weighed("<add>", 2, true),
        Instruction::Mul => weighed("<multiply>", 2, true),
        Instruction::StringConcat => vec![filter(CONCAT, 2)],
        Instruction::Rem => vec![filter(REMAINDER, 2)],
        Instruction::IntDiv => vec![filter(QUOTIENT, 2)],
        Instruction::Eq
        | Instruction::Ne
        | Instruction::Lt
        | Instruction::Lte
        | Instruction::Gt
        | Instruction::Gte
        | Instruction::CompareAndPreserve(_) => weighed("<compare>", 2, false),
        Instruction::In => weighed("<contains>", 2, false),
        // A name is no index of a string.
        Instruction::GetItem if matches!(before, Some(Instruction::LoadConst(name)) if name.as_str().is_some()) =>
        {
            vec![own()]
        }
        Instruction::GetItem => weighed("<item>", 2, false),
        Instruction::Slice => weighed("<slice>", 4, true),
        Instruction::PushLoop(_) => {
            let mut all = vec![filter(SETTLE, 1)];
            all.extend(weighed("<loop>", 1, false));
            all
        }
        Instruction::FastRecurse | Instruction::UnpackList(_) => weighed("<loop>", 1, false),
        Instruction::UnpackLists(count) => weighed("<spread>", u16::try_from(*count).unwrap_or(0), false),
        Instruction::SetAttr(_) => weighed("<attribute>", 2, false),
        Instruction::BuildList(_) | Instruction::BuildMap(_) => vec![own(), filter("<nest>", 1)],
        Instruction::CallMethod(_, count) | Instruction::CallObject(count) => {
            weighed("<call>", count.unwrap_or(0), true)
        }
        // Any name may stand for the function `loop` of a recursive loop.
        Instruction::CallFunction(name, Some(1)) if recursive && *name != "super" => {
            weighed("<spread>", 1, true)
        }
        Instruction::CallFunction(name, count) if *name != "super" => {
            weighed("<call>", count.unwrap_or(0), true)
        }
        _ => vec![own()],
    }
}

/// Bytes of two strings.
fn texts(operands: &[Value]) -> Option<(u64, u64)> {
    let [a, b] = operands else { return None };
    Some((number(a.as_str()?.len()), number(b.as_str()?.len())))
}

fn add(operands: &[Value]) -> Result<(), Error> {
    match texts(operands) {
        Some((a, b)) => charge(a.saturating_add(b)),
        None => operands.iter().try_for_each(|operand| make(length(operand), 0)),
    }
}

fn multiply(operands: &[Value]) -> Result<(), Error> {
    let [a, b] = operands else { return Ok(()) };
    for (what, times) in [(a, b), (b, a)] {
        let times = number(times.as_usize().unwrap_or(0));
        let bytes = what.as_str().map_or(0, |text| number(text.len()));
        let count = length(what).saturating_mul(times);
        make(count, bytes.saturating_mul(times))?;
    }
    Ok(())
}

fn compare(operands: &[Value]) -> Result<(), Error> {
    match texts(operands) {
        Some((a, b)) => charge(1 + a.min(b) / 8),
        None => operands.iter().try_for_each(|operand| read(operand).map(|_| ())),
    }
}

fn contains(operands: &[Value]) -> Result<(), Error> {
    let [value, container] = operands else {
        return Ok(());
    };
    match (value.as_str(), container.kind()) {
        // Found by its key.
        (_, ValueKind::Map) => charge(read(value)?),
        (None, _) if container.as_str().is_some() => charge(read(value)?.saturating_add(read(container)?)),
        _ => charge(read(value)? / 8).and_then(|()| read(container).map(|_| ())),
    }
}

/// Of a string, or of a dictionary by the hash of a string.
fn item(operands: &[Value]) -> Result<(), Error> {
    let texts = operands.iter().filter_map(Value::as_str);
    charge(1 + texts.map(|text| number(text.len())).sum::<u64>())
}

fn slice(operands: &[Value]) -> Result<(), Error> {
    let Some(value) = operands.first() else {
        return Ok(());
    };
    // Its characters, each of four bytes.
    let bytes = value.as_str().map_or(0, |text| number(text.len()));
    make(length(value), bytes.saturating_mul(4))
}

/// Of a call: `loop` goes through its argument, `loop.changed` compares it.
fn call(operands: &[Value]) -> Result<(), Error> {
    operands.iter().try_for_each(|operand| match operand.as_str() {
        Some(text) => charge(1 + number(text.len()) / 8),
        None => read(operand).map(|_| ()),
    })
}

fn each(operands: &[Value]) -> Result<(), Error> {
    operands.iter().try_for_each(iterate)
}

fn spread(operands: &[Value]) -> Result<(), Error> {
    operands
        .iter()
        .try_for_each(|operand| iterate(operand).and_then(|()| read(operand).map(|_| ())))
}

fn attribute(operands: &[Value]) -> Result<(), Error> {
    let value = operands.first();
    value.map_or(Ok(()), |value| walk_data(value).map(|_| ()))
}

fn nest(operands: &[Value]) -> Result<(), Error> {
    operands.iter().try_for_each(|operand| {
        make(length(operand), 0)?;
        if operand.kind() == ValueKind::Map {
            // Each key is hashed.
            for key in operand.try_iter()? {
                charge(key.as_str().map_or(0, |text| number(text.len())))?;
            }
        }
        walk(operand).map(|_| ())
    })
}

/// `a ~ b`: both as they are written.
fn concat(operands: &[Value]) -> Result<Value, Error> {
    let mut text = String::new();
    for operand in operands {
        if let Some(own) = operand.as_str() {
            charge(number(own.len()))?;
            text.push_str(own);
        } else {
            super::print(operand, &mut Charged(&mut text))?;
        }
    }
    Ok(Value::from(text))
}

/// A string whose bytes are charged as they come.
pub(super) struct Charged<'a>(pub(super) &'a mut String);

impl std::fmt::Write for Charged<'_> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        charge(weigh::number(text.len())).map_err(|_| std::fmt::Error)?;
        self.0.push_str(text);
        Ok(())
    }
}
