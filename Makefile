# Everything is set up by the commands themselves: a fresh machine needs Python 3.11, git and make.
.PHONY: help site test bench clean lock docs

help:
	@echo 'make site             the example site on this machine, verified, left running'
	@echo '  TAGS=memcached        only that part of the site'
	@echo 'make test             lint, sanity, unit tests and every scenario'
	@echo '  SCENARIO=memcached    only that scenario'
	@echo '  EL=rocky9             on a real image: rocky9 rocky10 alma9 alma10 ubi9 ubi10, or any reference'
	@echo 'make bench            the side-by-side figures, as a table and in bench/results/'
	@echo 'make clean            end and remove what the others made'
	@echo 'make lock / docs      renew the requirements*.txt / the role pages and the dashboards'

site:
	@python3 tools/lab.py site --tags '$(TAGS)'

test:
	@python3 tools/lab.py test --scenario '$(SCENARIO)'

bench:
	@python3 tools/lab.py bench

clean:
	@python3 tools/lab.py clean

LOCK = $(CURDIR)/.cache/venv/bin/pip-compile --quiet --strip-extras --allow-unsafe --generate-hashes \
	--no-emit-index-url --no-emit-find-links --no-emit-trusted-host --output-file
REPORT = roles/mail_report/files/mailreport

lock:
	@python3 tools/lab.py venv
	@$(LOCK) requirements.txt requirements.in
	@cd $(REPORT) && $(LOCK) requirements-build.txt requirements-build.in
	@cd $(REPORT) && $(LOCK) requirements.txt pyproject.toml
	@cd $(REPORT) && $(LOCK) requirements-clickhouse.txt --extra clickhouse pyproject.toml
	@cd $(REPORT) && $(LOCK) requirements-spark.txt --extra spark pyproject.toml

docs:
	@python3 tools/lab.py docs
