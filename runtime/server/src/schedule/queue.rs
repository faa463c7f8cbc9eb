//! The queue: whose turn is it? Clients take turns, however many jobs each has; a client's own come in their order.

use std::collections::VecDeque;

/// What waits, by client.
#[derive(Debug)]
pub(super) struct Queue<T> {
    /// Clients that have something here, the one whose turn it is first; none of them is empty.
    clients: VecDeque<(String, VecDeque<T>)>,
}

impl<T> Default for Queue<T> {
    fn default() -> Queue<T> {
        Queue {
            clients: VecDeque::new(),
        }
    }
}

impl<T> Queue<T> {
    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.clients.iter().map(|(_, own)| own.len()).sum()
    }

    /// Whether nobody waits.
    pub(super) fn is_empty(&self) -> bool {
        self.clients.is_empty()
    }

    /// Takes one in, behind what its client has here; a client that has nothing here comes last.
    pub(super) fn push(&mut self, client: String, item: T) {
        match self.clients.iter_mut().find(|(name, _)| *name == client) {
            Some((_, own)) => own.push_back(item),
            None => self.clients.push_back((client, VecDeque::from([item]))),
        }
    }

    /// The oldest of the client whose turn it is, which then is last in line.
    pub(super) fn pop(&mut self) -> Option<T> {
        let (client, mut own) = self.clients.pop_front()?;
        let item = own.pop_front();
        if !own.is_empty() {
            self.clients.push_back((client, own));
        }
        item
    }

    /// Takes out those that `gone` is true of.
    pub(super) fn sweep(&mut self, gone: impl Fn(&T) -> bool) -> Vec<T> {
        let mut swept = Vec::new();
        for (_, own) in &mut self.clients {
            let (out, stay): (Vec<T>, Vec<T>) = std::mem::take(own).into_iter().partition(&gone);
            swept.extend(out);
            *own = stay.into();
        }
        self.clients.retain(|(_, own)| !own.is_empty());
        swept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_take_turns() {
        let mut queue = Queue::default();
        for (client, item) in [("a", 1), ("a", 2), ("a", 3), ("b", 4), ("c", 5), ("b", 6)] {
            queue.push(client.to_owned(), item);
        }
        assert_eq!(queue.len(), 6);
        let mut order = vec![queue.pop().unwrap()];
        // One that comes later is not behind all that another has.
        queue.push("d".to_owned(), 7);
        order.extend(std::iter::from_fn(|| queue.pop()));
        assert_eq!(order, [1, 4, 5, 2, 7, 6, 3]);
        assert!(queue.is_empty());
    }

    #[test]
    fn who_is_gone_is_swept() {
        let mut queue = Queue::default();
        for (client, item) in [("a", 1), ("b", 2), ("a", 3), ("b", 4), ("c", 6)] {
            queue.push(client.to_owned(), item);
        }
        let mut swept = queue.sweep(|item| item % 2 == 0);
        swept.sort_unstable();
        assert_eq!(swept, [2, 4, 6]);
        assert_eq!(queue.len(), 2);
        queue.push("b".to_owned(), 8);
        assert_eq!(std::iter::from_fn(|| queue.pop()).collect::<Vec<_>>(), [1, 8, 3]);
    }
}
