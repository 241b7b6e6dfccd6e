//! TensorBoard's event files: records of protocol buffers, each with its length and checksums.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;

use super::jsonl::{Extent, Log};

/// A file that scalars are added to.
#[derive(Debug)]
pub struct Events(Log);

impl Events {
    /// Begins a file.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn restart(path: &Path) -> Result<Self> {
        let mut events = Self(Log::restart(path)?);
        events.write(&event(None, &field(3, &Value::Bytes(b"brain.Event:2"))))?;
        Ok(events)
    }

    /// Goes on with a file.
    #[must_use]
    pub fn resume(log: Log) -> Self {
        Self(log)
    }

    /// Adds the values of one step.
    ///
    /// # Errors
    /// If they cannot be written; the file then ends as before.
    pub fn add(&mut self, step: usize, values: &[(&str, f64)]) -> Result<()> {
        let values = values.iter().flat_map(|(tag, value)| {
            let value = [field(1, &Value::Bytes(tag.as_bytes())), field(2, &Value::Float(*value as f32))].concat();
            field(1, &Value::Bytes(&value))
        });
        self.write(&event(Some(step), &field(5, &Value::Bytes(&values.collect::<Vec<_>>()))))
    }

    /// Adds a text before the first step.
    ///
    /// # Errors
    /// If it cannot be written; the file then ends as before.
    pub fn say(&mut self, tag: &str, text: &str) -> Result<()> {
        const STRING: u64 = 7;
        let plugin = field(1, &Value::Bytes(&field(1, &Value::Bytes(b"text"))));
        let tensor =
            [field(1, &Value::Whole(STRING)), field(2, &Value::Bytes(&[])), field(8, &Value::Bytes(text.as_bytes()))];
        let value = [
            field(1, &Value::Bytes(tag.as_bytes())),
            field(8, &Value::Bytes(&tensor.concat())),
            field(9, &Value::Bytes(&plugin)),
        ];
        let value = field(1, &Value::Bytes(&value.concat()));
        self.write(&event(Some(0), &field(5, &Value::Bytes(&value))))
    }

    /// Waits until everything is on the disk, and returns the extent of the file.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn sync(&mut self) -> Result<Extent> {
        self.0.sync()
    }

    fn write(&mut self, message: &[u8]) -> Result<()> {
        let length = (message.len() as u64).to_le_bytes();
        let record = [&length[..], &masked_crc(&length), message, &masked_crc(message)].concat();
        self.0.append(&record)
    }
}

/// A value of a field of a protocol buffer.
enum Value<'a> {
    Double(f64),
    Float(f32),
    Whole(u64),
    Bytes(&'a [u8]),
}

/// The time, the step and what happened.
fn event(step: Option<usize>, what: &[u8]) -> Vec<u8> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64());
    let step = step.map(|step| field(2, &Value::Whole(step as u64))).unwrap_or_default();
    [&field(1, &Value::Double(now)), &step, what].concat()
}

fn field(number: u8, value: &Value<'_>) -> Vec<u8> {
    let key = |kind: u8| number << 3 | kind;
    match value {
        Value::Whole(x) => [vec![key(0)], varint(*x)].concat(),
        Value::Double(x) => [&[key(1)][..], &x.to_le_bytes()].concat(),
        Value::Bytes(x) => [&[key(2)][..], &varint(x.len() as u64), x].concat(),
        Value::Float(x) => [&[key(5)][..], &x.to_le_bytes()].concat(),
    }
}

/// Seven bits a byte, the lowest first.
fn varint(mut x: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while x >= 0x80 {
        bytes.push(x as u8 | 0x80);
        x >>= 7;
    }
    bytes.push(x as u8);
    bytes
}

/// As the format wants it: turned, and with a constant added.
fn masked_crc(bytes: &[u8]) -> [u8; 4] {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// The payloads of a file whose checksums are all right.
    fn payloads(bytes: &[u8]) -> Vec<Vec<u8>> {
        let (mut rest, mut payloads) = (bytes, Vec::new());
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            assert_eq!(rest[8..12], masked_crc(&rest[..8]));
            assert_eq!(rest[12 + length..16 + length], masked_crc(&rest[12..12 + length]));
            payloads.push(rest[12..12 + length].to_vec());
            rest = &rest[16 + length..];
        }
        payloads
    }

    #[test]
    fn records_are_those_of_the_format() {
        // The checksum of "123456789" in CRC-32C's definition, masked.
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(varint(300), [0xac, 2]);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events");
        let mut events = Events::restart(&path).unwrap();
        events.add(300, &[("loss", 0.5), ("rate", 0.1)]).unwrap();
        let extent = events.sync().unwrap();
        events.add(301, &[("loss", 0.25)]).unwrap();
        let all = payloads(&fs::read(&path).unwrap());
        assert_eq!(all.len(), 3);
        assert_eq!(all[0][9..], *b"\x1a\x0dbrain.Event:2");
        let value = |tag: &[u8], x: f32| {
            [&[0x0a, 6 + tag.len() as u8 + 1][..], &[0x0a, tag.len() as u8], tag, &[0x15], &x.to_le_bytes()].concat()
        };
        let summary = [value(b"loss", 0.5), value(b"rate", 0.1)].concat();
        let expected = [&[0x10, 0xac, 2, 0x2a, summary.len() as u8][..], &summary].concat();
        assert_eq!(all[1][9..], expected);
        drop(Events::resume(Log::resumable(&path, &extent).unwrap().unwrap().cut().unwrap()));
        assert_eq!(payloads(&fs::read(&path).unwrap()), all[..2]);
    }
}
