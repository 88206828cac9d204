"""What an operator types. `ns` is the namespace that a fabfile exports:

    from deploytools.tasks import ns

Task bodies are thin: settings -> plan -> carry out -> result. They import late, so that
`fab --list` doesn't wait for what it doesn't use.
"""

from invoke.collection import Collection

from deploytools.command_line import adapt_fabric
from deploytools.project_file import check_project_file
from deploytools.tasks import deploy, look, maintenance, sandbox, start

# Fabric reads fabric.yaml after it has imported us, and ends in a traceback where it isn't YAML.
check_project_file()
adapt_fabric()

ns = Collection(
    start.on,
    start.init,
    start.setup,
    look.status,
    look.doctor,
    look.releases,
    look.history,
    look.report,
    maintenance.maint_down,
    maintenance.maint_up,
    maintenance.maint_preview,
    deploy.deploy,
    deploy.hotswap,
    deploy.rollback,
    deploy.unlock,
    Collection("sandbox", sandbox.up, sandbox.down, sandbox.reset),
)
migrate = Collection("migrate")
migrate.add_task(look.migrations, default=True)
migrate.add_task(look.resolve)
ns.add_collection(migrate)
