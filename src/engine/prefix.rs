//! Which pages hold the keys and values of which text: a tree of whole pages for each (generation, mix, grid of blocks).
//!
//! Keys and values of a position depend on the weights and on every token up to the end of the position's block. So a page
//! is known by its place in the tree (all tokens before it) and by the tokens up to the end of the block in which the page ends.
//! Tokens are compared, not hashes of them.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};

use super::generation::Generation;
use crate::model::batch::MixKey;
use crate::model::{Mix, PageId};

/// A node's number; never used twice.
pub type NodeId = u64;

/// Whose keys and values: what they depend on besides the text.
#[derive(Clone, Copy)]
pub struct Owner<'a> {
    pub generation: &'a Arc<Generation>,
    pub mix: &'a Mix,
    /// Tokens to a block.
    pub block: usize,
    /// Tokens before the first whole block.
    pub phase: usize,
}

/// A generation by its address, which nobody else gets while a `Weak` to it is kept.
type RootKey = (usize, MixKey, usize, usize);

#[derive(Debug)]
struct Node {
    page: Option<PageId>,
    /// Where it hangs, and by which tokens; a root hangs nowhere.
    above: Option<(NodeId, Box<[u32]>)>,
    below: HashSet<NodeId>,
}

/// The index. It holds no page: what it knows of a page is valid until the page is [`forgotten`](Self::forget).
#[derive(Debug, Default)]
pub struct Prefixes {
    roots: HashMap<RootKey, (Weak<Generation>, NodeId)>,
    nodes: HashMap<NodeId, Node>,
    children: HashMap<(NodeId, Box<[u32]>), NodeId>,
    of_page: HashMap<PageId, NodeId>,
    last: NodeId,
}

impl Owner<'_> {
    fn key(&self) -> RootKey {
        (
            Arc::as_ptr(self.generation).addr(),
            self.mix.key(),
            self.block,
            self.phase,
        )
    }

    /// The end of the block that the token before position `end` is in.
    fn block_end(&self, end: usize) -> usize {
        match end.checked_sub(self.phase) {
            Some(beyond) => self.phase + beyond.next_multiple_of(self.block),
            None => self.phase,
        }
    }

    /// The tokens that, beyond those before it, decide what stands in page `index`; `None` where `text` does not reach so far.
    fn edge<'t>(&self, text: &'t [u32], index: usize, page_tokens: usize) -> Option<&'t [u32]> {
        let end = self.block_end((index + 1) * page_tokens);
        text.get(index * page_tokens..end)
    }
}

impl Prefixes {
    pub fn knows(&self, page: PageId) -> bool {
        self.of_page.contains_key(&page)
    }

    /// The pages that hold the beginning of `text`, as many as are known and end with a block, and the last one's node.
    pub fn find(
        &self,
        owner: Owner,
        text: &[u32],
        page_tokens: usize,
    ) -> (Vec<PageId>, Option<NodeId>) {
        let (mut pages, mut ended) = (Vec::new(), (0, None));
        let mut at = self.roots.get(&owner.key()).map(|(_, node)| *node);
        while let Some(node) = at {
            let edge = owner.edge(text, pages.len(), page_tokens);
            at = edge.and_then(|edge| self.children.get(&(node, edge.into())).copied());
            pages.extend(at.and_then(|node| self.nodes.get(&node)?.page));
            let end = pages.len() * page_tokens;
            if at.is_some() && owner.block_end(end) == end {
                ended = (pages.len(), at);
            }
        }
        pages.truncate(ended.0);
        (pages, ended.1)
    }

    /// Notes that `page` holds page `index` of `text`, below node `above` (page `index - 1`'s; `None` for page 0). Returns the
    /// node: an older one where that piece of text is known already. `None` where `above` is known no more, or the text does not
    /// decide the page yet.
    pub fn note(
        &mut self,
        owner: Owner,
        above: Option<NodeId>,
        text: &[u32],
        index: usize,
        (page, page_tokens): (PageId, usize),
    ) -> Option<NodeId> {
        let edge: Box<[u32]> = owner.edge(text, index, page_tokens)?.into();
        let above = match above {
            Some(node) => self.nodes.contains_key(&node).then_some(node)?,
            None => self.root(owner),
        };
        if let Some(&known) = self.children.get(&(above, edge.clone())) {
            return Some(known);
        }
        let node = self.add(Node {
            page: Some(page),
            above: Some((above, edge.clone())),
            below: HashSet::new(),
        });
        self.children.insert((above, edge), node);
        self.of_page.insert(page, node);
        self.nodes
            .entry(above)
            .and_modify(|above| _ = above.below.insert(node));
        Some(node)
    }

    /// Forgets a page and all that hangs below it, which cannot be found without it. Returns every page forgotten.
    pub fn forget(&mut self, page: PageId) -> Vec<PageId> {
        let Some(&node) = self.of_page.get(&page) else {
            return Vec::new();
        };
        let above = self
            .nodes
            .get(&node)
            .and_then(|node| Some(node.above.as_ref()?.0));
        let forgotten = self.remove(node);
        if let Some(above) = above
            && let Some(left) = self.nodes.get_mut(&above)
        {
            left.below.remove(&node);
            // A root without pages goes, so that there are never more of them than pages.
            if left.below.is_empty() && left.page.is_none() {
                self.nodes.remove(&above);
                self.roots.retain(|_, (_, root)| *root != above);
            }
        }
        forgotten
    }

    /// Forgets all that belongs to generations that are gone. Returns every page forgotten.
    pub fn prune(&mut self) -> Vec<PageId> {
        let mut gone = Vec::new();
        self.roots.retain(|_, (generation, node)| {
            let alive = generation.strong_count() > 0;
            gone.extend((!alive).then_some(*node));
            alive
        });
        gone.into_iter()
            .flat_map(|node| self.remove(node))
            .collect()
    }

    fn root(&mut self, owner: Owner) -> NodeId {
        if let Some((_, node)) = self.roots.get(&owner.key()) {
            return *node;
        }
        let node = self.add(Node {
            page: None,
            above: None,
            below: HashSet::new(),
        });
        self.roots
            .insert(owner.key(), (Arc::downgrade(owner.generation), node));
        node
    }

    fn add(&mut self, node: Node) -> NodeId {
        self.last += 1;
        self.nodes.insert(self.last, node);
        self.last
    }

    fn remove(&mut self, node: NodeId) -> Vec<PageId> {
        let (mut pages, mut left) = (Vec::new(), vec![node]);
        while let Some(node) = left.pop().and_then(|id| self.nodes.remove(&id)) {
            left.extend(node.below);
            if let Some(above) = node.above {
                self.children.remove(&above);
            }
            if let Some(page) = node.page {
                self.of_page.remove(&page);
                pages.push(page);
            }
        }
        pages
    }
}
