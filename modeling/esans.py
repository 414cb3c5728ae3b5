"""ESANS: negatives of each target's own, drawn from clusters of the items.

Items lie in clusters (level 1), each of which is cut into subclusters (level 2). A target in cluster c is told from

    easy     items of other clusters, which are drawn by softmax(-distance to c / temperature)
    hard     items of c, but not of the target's own subcluster
    virtual  blends of item vectors: of the easy ones of one cluster (simple), of the target and a hard one (hard)

Source: ESANS (arXiv 2502.16077, WWW 2025), whose text was not at hand: the distance softmax, the two levels and both
interpolations as notes of it report them, the number of simple blends from its authors' reply to the reviewers. Ours:
clusters are drawn with replacement and items without, so that q is exact; blends have Dirichlet(1) weights; the range
of the target's weight; unit length again after blending; log-q, and that a virtual negative has that of a uniform draw.

Letters: V rows, C clusters, S subclusters of each, E targets, O items per cluster, G other clusters of a target.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from modeling.negatives import Negatives, OwnNegatives


@dataclass(frozen=True)
class Clusters:
    """Two levels of clusters of all items; tensors on the CPU."""

    codes_V2: Int[Tensor, "V 2"]  # cluster of each row, and subcluster in it; row 0 is padding: -1, -1
    distances_CC: Float[Tensor, "C C"]  # between the centres of the clusters

    @property
    def num_clusters(self) -> int:
        """C: clusters of the first level, all of which hold items."""
        return len(self.distances_CC)

    def sizes(self) -> Int[Tensor, "C"]:
        """Items of each cluster."""
        return torch.bincount(self.codes_V2[1:, 0], minlength=self.num_clusters)


class _Layout:
    """Clusters arranged for drawing: the items of each cluster lie side by side, those of a subcluster too."""

    def __init__(self, clusters: Clusters, temperature: float) -> None:
        self.codes_V2 = clusters.codes_V2
        num_clusters = clusters.num_clusters
        self.num_subclusters = int(self.codes_V2[:, 1].max()) + 1
        flat_I = self.flat(self.codes_V2[1:])
        self.rows_I = flat_I.argsort(stable=True) + 1
        self.sub_sizes_T = torch.bincount(flat_I, minlength=num_clusters * self.num_subclusters)
        self.sub_firsts_T = self.sub_sizes_T.cumsum(0) - self.sub_sizes_T
        self.sizes_C = clusters.sizes()
        self.firsts_C = self.sizes_C.cumsum(0) - self.sizes_C
        away_CC = (-clusters.distances_CC.double() / temperature).fill_diagonal_(float("-inf"))
        # One cluster alone has no others: nothing is drawn from them.
        self.others_CC = away_CC.softmax(1).nan_to_num()
        self.cumulative_CC = self.others_CC.cumsum(1)

    def flat(self, codes_N2: Int[Tensor, "N 2"]) -> Int[Tensor, "N"]:
        """Number of a subcluster among those of all clusters."""
        return codes_N2[:, 0] * self.num_subclusters + codes_N2[:, 1]


class EsansSampler(Negatives):
    """Draws easy, hard and virtual negatives for each target, and uniform ones that all share.

    q(v) for one target is the expected share of v among its real negatives: of the m_c m_o easy draws each gives an
    item of another cluster j with probability softmax(-distance)_j / size_j, of the hard ones each an item of the same
    cluster and another subcluster, uniformly, and of the U uniform ones each any of the items. Target and virtual
    negatives count as drawn uniformly, so that without clusters this is uniform sampling.

    Drawing is on the CPU. Clusters must be given with `use` before the first batch.

    Args:
        other_clusters, per_cluster: m_c and m_o.
        hard_range: least and largest weight of the target in a hard virtual negative.
        log_q: whether to correct; otherwise log q is that of a uniform draw for all.
    """

    def __init__(
        self,
        num_rows: int,
        *,
        other_clusters: int,
        per_cluster: int,
        distance_temperature: float,
        hard: bool,
        simple_virtual: bool,
        hard_virtual: bool,
        hard_range: tuple[float, float],
        num_uniform: int,
        log_q: bool,
    ) -> None:
        super().__init__()
        self.num_rows = num_rows
        self.other_clusters, self.per_cluster = other_clusters, per_cluster
        self.distance_temperature = distance_temperature
        self.hard, self.simple_virtual, self.hard_virtual = hard, simple_virtual, hard_virtual
        self.hard_range = hard_range
        self.num_uniform = num_uniform
        self.corrects = log_q
        self._layout: _Layout | None = None

    @property
    def scored_per_target(self) -> int:
        """Easy, hard, virtual and uniform negatives, where the clusters have enough of them."""
        simple = simple_blends(self.per_cluster) if self.simple_virtual else 0
        easy = self.other_clusters * (self.per_cluster + simple)
        return easy + self.per_cluster * (self.hard + self.hard_virtual) + self.num_uniform

    def use(self, clusters: Clusters) -> None:
        """Draw from these clusters from now on; every one of several holds at least m_o items."""
        assert clusters.num_clusters == 1 or int(clusters.sizes().min()) >= self.per_cluster
        self._layout = _Layout(clusters, self.distance_temperature)

    def forward(self, targets_E: Int[Tensor, "E"], generator: torch.Generator | None) -> Int[Tensor, "N"]:
        """Rows of the uniform negatives, shared by all targets; never row 0."""
        return torch.randint(1, self.num_rows, (self.num_uniform,), generator=generator).to(targets_E.device)

    def log_q(self, rows: Int[Tensor, "..."]) -> Float[Tensor, "..."]:
        """That of a uniform draw: what targets and virtual negatives count as."""
        return -torch.full(rows.shape, self.num_rows - 1.0, device=rows.device).log()

    def own(
        self, targets_E: Int[Tensor, "E"], shared_N: Int[Tensor, "N"], generator: torch.Generator | None
    ) -> OwnNegatives:
        """Draw for each target, on its own: real negatives, easy ones first, and the weights of the virtual ones."""
        assert self._layout is not None, "clusters are given before the first batch"
        layout, device = self._layout, targets_E.device
        # A target of padding stands for none; it is given some item's negatives, and its loss counts for nothing.
        codes_E2 = layout.codes_V2[targets_E.cpu()].clamp(min=0)
        rows_EM = self._easy(layout, codes_E2, generator)
        if self.hard:
            rows_EM = torch.cat([rows_EM, self._hard(layout, codes_E2, generator)], 1)
        weights_EWM, target_weights_EW = self._weights(len(codes_E2), rows_EM.shape[1], generator)
        if self.corrects:
            log_q_EM = self.log_probability(codes_E2, rows_EM)
            # It is the same for all targets of a subcluster.
            flat_T, which_E = torch.unique(layout.flat(codes_E2), return_inverse=True)
            codes_T2 = torch.stack([flat_T // layout.num_subclusters, flat_T % layout.num_subclusters], 1)
            shared_log_q_EN = self.log_probability(codes_T2, shared_N.cpu().expand(len(codes_T2), -1))[which_E]
        else:
            log_q_EM, shared_log_q_EN = self.log_q(rows_EM), self.log_q(shared_N.expand(len(codes_E2), -1))
        return OwnNegatives(
            rows_EM.to(device),
            log_q_EM.to(device),
            shared_log_q_EN.to(device),
            weights_EWM.to(device),
            target_weights_EW.to(device),
        )

    def log_probability(self, codes_E2: Int[Tensor, "E 2"], rows_EM: Int[Tensor, "E M"]) -> Float[Tensor, "E M"]:
        """Natural log of the probability that one draw for a target of this cluster gives an item; 0 for no item."""
        assert self._layout is not None
        layout = self._layout
        own_E1, codes_EM2 = codes_E2[:, :1], layout.codes_V2[rows_EM].clamp(min=0)
        found_EM, others_EM = codes_EM2[..., 0], layout.others_CC[own_E1, codes_EM2[..., 0]]
        num_easy = self.other_clusters * self.per_cluster if len(layout.sizes_C) > 1 else 0
        expected_EM = num_easy * others_EM / layout.sizes_C[found_EM]
        drawn_E1 = torch.full(own_E1.shape, num_easy + self.num_uniform, dtype=torch.float64)
        if self.hard:
            sizes_E1 = self._hard_sizes(layout, codes_E2)[:, None]
            taken_E1 = sizes_E1.clamp(max=self.per_cluster)
            hard_EM = (found_EM == own_E1) & (codes_EM2[..., 1] != codes_E2[:, 1:])
            expected_EM = expected_EM + hard_EM * taken_E1 / sizes_E1.clamp(min=1)
            drawn_E1 = drawn_E1 + taken_E1
        expected_EM = expected_EM + self.num_uniform / (self.num_rows - 1)
        return (expected_EM / drawn_E1).log().where(rows_EM > 0, 0.0).float()

    def _easy(
        self, layout: _Layout, codes_E2: Int[Tensor, "E 2"], generator: torch.Generator | None
    ) -> Int[Tensor, "E M"]:
        """Items of other clusters, cluster after cluster."""
        draws_EG = torch.rand(len(codes_E2), self.other_clusters, generator=generator, dtype=torch.float64)
        cumulative_EC = layout.cumulative_CC[codes_E2[:, 0]]
        found_EG = torch.searchsorted(cumulative_EC, draws_EG * cumulative_EC[:, -1:], right=True)
        found_EG = found_EG.clamp(max=len(layout.sizes_C) - 1)
        sizes_EG = layout.sizes_C[found_EG] * (found_EG != codes_E2[:, :1])
        places_EGO = distinct_places(sizes_EG, self.per_cluster, generator)
        rows_EGO = layout.rows_I[layout.firsts_C[found_EG][..., None] + places_EGO.clamp(min=0)]
        return rows_EGO.where(places_EGO >= 0, 0).flatten(1)

    def _hard(
        self, layout: _Layout, codes_E2: Int[Tensor, "E 2"], generator: torch.Generator | None
    ) -> Int[Tensor, "E O"]:
        """Items of the same cluster, but of other subclusters, as many as there are."""
        places_EO = distinct_places(self._hard_sizes(layout, codes_E2), self.per_cluster, generator)
        flat_E = layout.flat(codes_E2)
        first_E1 = layout.firsts_C[codes_E2[:, :1]]
        # The target's subcluster lies between those that may be drawn: places behind its first item are past it.
        places_in_I_EO = first_E1 + places_EO.clamp(min=0)
        behind_EO = places_in_I_EO >= layout.sub_firsts_T[flat_E][:, None]
        places_in_I_EO = places_in_I_EO + behind_EO * layout.sub_sizes_T[flat_E][:, None]
        return layout.rows_I[places_in_I_EO.clamp(max=len(layout.rows_I) - 1)].where(places_EO >= 0, 0)

    @staticmethod
    def _hard_sizes(layout: _Layout, codes_E2: Int[Tensor, "E 2"]) -> Int[Tensor, "E"]:
        return layout.sizes_C[codes_E2[:, 0]] - layout.sub_sizes_T[layout.flat(codes_E2)]

    def _weights(
        self, num_targets: int, num_items: int, generator: torch.Generator | None
    ) -> tuple[Float[Tensor, "E W M"], Float[Tensor, "E W"]]:
        """Weights of the items and of the target in each virtual negative: the simple ones first."""
        easy, blends = self.other_clusters * self.per_cluster, []
        from_target = [torch.zeros(num_targets, 0)]
        if self.simple_virtual:
            for cluster in range(self.other_clusters):
                drawn_EBO = simple_weights(num_targets, self.per_cluster, generator)
                before = cluster * self.per_cluster
                after = num_items - before - self.per_cluster
                blends.append(torch.nn.functional.pad(drawn_EBO, (before, after)))
                from_target.append(torch.zeros(drawn_EBO.shape[:2]))
        if self.hard_virtual:
            low, high = self.hard_range
            target_EO = low + (high - low) * torch.rand(num_targets, self.per_cluster, generator=generator)
            blends.append(torch.nn.functional.pad(torch.diag_embed(1 - target_EO), (easy, 0)))
            from_target.append(target_EO)
        return torch.cat([torch.zeros(num_targets, 0, num_items), *blends], 1), torch.cat(from_target, 1)


def simple_blends(per_cluster: int) -> int:
    """Simple virtual negatives of one cluster: k of every k from 2 to m_o, (m_o + 2)(m_o - 1) / 2 in all."""
    return (per_cluster + 2) * (per_cluster - 1) // 2


def simple_weights(num_targets: int, per_cluster: int, generator: torch.Generator | None) -> Float[Tensor, "E B O"]:
    """For k = 2 to m_o, k of a cluster's items and k convex combinations of them, Dirichlet(1)."""
    counts = torch.arange(2, per_cluster + 1)
    order_EKO = torch.rand(num_targets, len(counts), per_cluster, generator=generator).argsort(-1).argsort(-1)
    chosen_EKO: Bool[Tensor, "E K O"] = order_EKO < counts[:, None]
    chosen_EBO = chosen_EKO.repeat_interleave(counts, 1)
    # Exponential draws over their sum are Dirichlet(1); the double's 1 - rand is never 0.
    draws_EBO = -(1 - torch.rand(chosen_EBO.shape, generator=generator, dtype=torch.float64)).log()
    kept_EBO = (draws_EBO * chosen_EBO).float()
    return kept_EBO / kept_EBO.sum(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)


def distinct_places(sizes: Int[Tensor, "..."], count: int, generator: torch.Generator | None) -> Int[Tensor, "... O"]:
    """Of each group of so many things `count` different places, uniformly, in random order; -1 where it has no more."""
    draws = torch.rand(*sizes.shape, count, generator=generator, dtype=torch.float64)
    places = torch.empty(*sizes.shape, 0, dtype=torch.long)
    for nth in range(count):
        # The nth of what is left: one further for every earlier place that lies before it.
        place = (draws[..., nth] * (sizes - nth).clamp(min=0)).long()
        for earlier in places.sort(-1).values.unbind(-1):
            place = place + (place >= earlier)
        places = torch.cat([places, place[..., None]], -1)
    return places.where(torch.arange(count) < sizes[..., None], -1)
