//! Kept conversations: which of those that nobody uses goes on with a new prompt, and which ones go when memory is wanted?

/// Conversations that nobody uses, the one that was used last at the end. `T` is a conversation, or what a test has instead.
#[derive(Debug)]
pub(super) struct Kept<T> {
    entries: Vec<Entry<T>>,
    most: usize,
}

/// A conversation, and the room that it takes.
#[derive(Debug)]
pub(super) struct Entry<T> {
    pub(super) conversation: T,
    /// Cache positions that it takes.
    pub(super) positions: usize,
    /// Those of them that are filled.
    pub(super) used: usize,
    /// Bytes of its cache.
    pub(super) bytes: usize,
}

impl<T> Kept<T> {
    /// None yet, and never more than `most`.
    pub(super) fn up_to(most: usize) -> Kept<T> {
        Kept {
            entries: Vec::new(),
            most,
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// All of them.
    pub(super) fn conversations(&self) -> impl Iterator<Item = &T> {
        self.entries.iter().map(|entry| &entry.conversation)
    }

    /// Cache positions of all of them.
    pub(super) fn positions(&self) -> usize {
        self.entries.iter().map(|entry| entry.positions).sum()
    }

    /// Bytes of all of their caches.
    pub(super) fn bytes(&self) -> usize {
        self.entries.iter().map(|entry| entry.bytes).sum()
    }

    /// Keeps one; those that were not used for longest go where there are too many.
    #[must_use]
    pub(super) fn put(&mut self, entry: Entry<T>) -> Vec<Entry<T>> {
        self.entries.push(entry);
        let over = self.entries.len().saturating_sub(self.most);
        self.entries.drain(..over).collect()
    }

    /// Those that were not used for longest, until the rest takes at most so many positions.
    #[must_use]
    pub(super) fn shrink(&mut self, positions: usize) -> Vec<Entry<T>> {
        let mut gone = Vec::new();
        while self.positions() > positions && !self.entries.is_empty() {
            gone.push(self.entries.remove(0));
        }
        gone
    }

    /// The one that has the most positions in common with a prompt, of several the one that was used last. One that would
    /// lose more than half of what it has stays: its next turn is worth more than what is saved now.
    pub(super) fn take(&mut self, in_common: impl Fn(&T) -> usize) -> Option<Entry<T>> {
        let common = self.entries.iter().map(|entry| in_common(&entry.conversation));
        let useful = common.zip(&self.entries).enumerate();
        let useful = useful.filter(|(_, (common, entry))| *common > 0 && 2 * common >= entry.used);
        let (index, _) = useful.max_by_key(|(_, (common, _))| *common)?;
        Some(self.entries.remove(index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(text: &'static str) -> Entry<&'static str> {
        Entry {
            conversation: text,
            positions: text.len(),
            used: text.len(),
            bytes: 10 * text.len(),
        }
    }

    fn names(entries: &[Entry<&'static str>]) -> Vec<&'static str> {
        entries.iter().map(|entry| entry.conversation).collect()
    }

    fn common(prompt: &str) -> impl Fn(&&'static str) -> usize {
        move |text| {
            let pairs = text.bytes().zip(prompt.bytes());
            pairs.take_while(|(a, b)| a == b).count()
        }
    }

    #[test]
    fn the_longest_common_beginning_is_taken() {
        let mut kept = Kept::up_to(9);
        for text in ["ab", "abcd", "abce", "xy", "abcdefghijk"] {
            assert!(kept.put(entry(text)).is_empty());
        }
        assert_eq!((kept.len(), kept.positions(), kept.bytes()), (5, 23, 230));
        // Of two as good the one that was used last; the last one would lose more than half.
        let taken = kept.take(common("abczz")).unwrap();
        assert_eq!(taken.conversation, "abce");
        assert_eq!(kept.take(common("abczz")).unwrap().conversation, "abcd");
        assert_eq!(kept.take(common("abczz")).unwrap().conversation, "ab");
        assert!(kept.take(common("abczz")).is_none());
        assert!(kept.take(common("q")).is_none());
        assert_eq!(kept.take(common("abcdefq")).unwrap().conversation, "abcdefghijk");
        assert_eq!(kept.len(), 1);
    }

    /// Decoders of fixed length take their whole context, however little of it is filled.
    #[test]
    fn what_is_not_filled_is_not_lost() {
        let mut kept = Kept::up_to(9);
        let whole = Entry {
            positions: 2048,
            ..entry("abcd")
        };
        assert!(kept.put(whole).is_empty());
        assert_eq!(kept.take(common("abzz")).unwrap().conversation, "abcd");
    }

    #[test]
    fn those_not_used_for_longest_go() {
        let mut kept = Kept::up_to(3);
        for text in ["a", "bb", "ccc"] {
            assert!(kept.put(entry(text)).is_empty());
        }
        assert_eq!(names(&kept.put(entry("dddd"))), ["a"]);
        assert!(kept.shrink(9).is_empty());
        assert_eq!(names(&kept.shrink(8)), ["bb"]);
        assert_eq!(names(&kept.shrink(0)), ["ccc", "dddd"]);
        assert_eq!(names(&Kept::up_to(0).put(entry("a"))), ["a"]);
    }
}
