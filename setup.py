"Packaging: everything is read from settings.ini, nbdev's configuration file."
import re
import shutil
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
config = ConfigParser(delimiters=["="])
config.read(HERE / "settings.ini", encoding="utf-8")
s = config["DEFAULT"]
name = s["lib_name"]
readme = HERE / "README.md"
text = readme.read_text(encoding="utf-8") if readme.exists() else ""
for mark, where in (("!", "raw"), ("", "blob")):      # on other pages, links are whole
    link = rf"(?<={mark}\[)([^\]]*)\]\((?!\w+:|#)"
    text = re.sub(link, rf"\1]({s['git_url']}/{where}/{s['branch']}/", text)
EXTRAS = ("dev", "parquet", "cluster", "playground", "peers")


class WithNotebooks(build_py):
    "Puts the stage notebooks and the playground, which lie in nbs, into the package."

    def run(self):
        super().run()
        target = Path(self.build_lib) / name / "notebooks"
        if self.editable_mode:
            return
        target.mkdir(parents=True, exist_ok=True)
        for notebook in (HERE / "nbs" / "stages").glob("*.ipynb"):
            shutil.copy(notebook, target)
        (target / "tutorials").mkdir(exist_ok=True)
        shutil.copy(HERE / "nbs" / "tutorials" / "playground.ipynb", target / "tutorials")


setup(
    name=name,
    version=s["version"],
    description=s["description"],
    author=s["author"],
    author_email=s["author_email"],
    license="Apache-2.0",
    url=s["git_url"],
    packages=find_packages(include=[name, f"{name}.*"]),
    package_data={name: s["package_data"].split()},
    python_requires=">=" + s["min_python"],
    install_requires=s["requirements"].split(),
    extras_require={extra: s[f"{extra}_requirements"].split() for extra in EXTRAS},
    entry_points={
        "console_scripts": s["console_scripts"].split(),
        "nbdev": [f"{name}={name}._modidx:d"],
    },
    long_description=text,
    long_description_content_type="text/markdown",
    zip_safe=False,
    cmdclass={"build_py": WithNotebooks},
)
