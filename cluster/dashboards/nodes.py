"""A row on the machines, for every dashboard."""

from cluster.dashboards.panels import Panel, Query, Row

HERE = 'cluster=~"$cluster"'

NODES = Row(
    "Nodes",
    (
        Panel(
            "CPU",
            "Of each node.",
            (Query(f"ray_node_cpu_utilization{{{HERE}}} / 100", "{{ip}}"),),
            "percentunit",
        ),
        Panel(
            "Memory",
            "Of each node; at 95% Ray kills the newest task.",
            (Query(f"ray_node_mem_used{{{HERE}}} / ray_node_mem_total{{{HERE}}}", "{{ip}}"),),
            "percentunit",
            limits=(0.85, 0.92),
        ),
        Panel(
            "Disk",
            "Of each node, where Ray spills and logs.",
            (Query(f"ray_node_disk_utilization_percentage{{{HERE}}} / 100", "{{ip}}"),),
            "percentunit",
            limits=(0.8, 0.9),
        ),
        Panel(
            "GPU",
            "Share of the time in which each GPU computed anything.",
            (Query(f"ray_node_gpus_utilization{{{HERE}}} / 100", "{{ip}} {{GpuIndex}}"),),
            "percentunit",
        ),
        Panel(
            "GPU memory",
            "Used, of each GPU.",
            (Query(f"ray_node_gram_used{{{HERE}}} * 1024 * 1024", "{{ip}} {{GpuIndex}}"),),
            "bytes",
        ),
        Panel(
            "Network",
            "Of each node.",
            (
                Query(f"ray_node_network_receive_speed{{{HERE}}}", "{{ip}} in"),
                Query(f"ray_node_network_send_speed{{{HERE}}}", "{{ip}} out"),
            ),
            "Bps",
        ),
        Panel(
            "Object store",
            "Used by Ray's objects, in memory and spilled.",
            (
                Query(f"sum(ray_object_store_used_memory{{{HERE}}})", "in memory"),
                Query(f'sum(ray_object_store_memory{{{HERE}, Location="SPILLED"}})', "spilled"),
            ),
            "bytes",
            width=12,
        ),
        Panel(
            "Processes by memory",
            "Of Ray's, the largest kinds.",
            (Query(f"topk(8, sum by (Component) (ray_component_rss_bytes{{{HERE}}}))", "{{Component}}"),),
            "bytes",
            width=12,
        ),
    ),
    collapsed=True,
)
