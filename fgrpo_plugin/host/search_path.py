"""Offers our Hydra groups to the stock ``main_ppo``: ``+fgrpo=<group>`` finds ``conf/fgrpo/<group>.yaml``."""

from types import ModuleType

SEARCH_PATH = "pkg://fgrpo_plugin.conf"


def register_search_path(plugins: ModuleType) -> None:
    """Register the search path with Hydra.

    Args:
        plugins: the module ``hydra.core.plugins``, just imported.
    """
    from hydra.core.config_search_path import ConfigSearchPath
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    class FDivergenceSearchPath(SearchPathPlugin):
        def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
            search_path.append(provider="fgrpo-plugin", path=SEARCH_PATH)

    plugins.Plugins.instance().register(FDivergenceSearchPath)
