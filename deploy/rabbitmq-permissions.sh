#!/usr/bin/env bash
#
# Least privilege in RabbitMQ: what a worker, a publisher, an operator and a reader may do, for one work queue.
#
#   configure   make queues
#   write       publish: everything goes through the default exchange, which is called amq.default here
#   read        take messages; and be the source of dead-lettering, which the broker checks when a queue is made
#
# By itself it prints the commands; it changes something only with --apply.

set -euo pipefail

usage() {
  cat <<'EOF2'
deploy/rabbitmq-permissions.sh: the permissions of a user, for one work queue

usage: deploy/rabbitmq-permissions.sh [OPTIONS] ROLE USER

  ROLE          worker      runs jobs: makes the queues, takes messages, publishes copies
                publisher   publishes jobs, takes and makes nothing
                operator    cliquet dead, retry, publish: takes from the dead queue, publishes, makes nothing
                            (on RabbitMQ 4.3 and later as a worker, who may look for queues)
                reader      sees everything in the dashboard and through `cliquet doctor --for reader`, touches nothing

  --queue NAME  the work queue; the delay queues and the dead queue are named after it [default: jobs]
  --prefix NAME instead: every work queue whose name begins like this
  --vhost NAME  the virtual host [default: /]
  --no-declare  a worker with `declare = false`: the queues are made by `cliquet topology declare` as somebody else.
                (From RabbitMQ 4.3 on, a user that may not make a queue may not look for it either: there, leave this out.)
  --apply       run the commands instead of printing them (RABBITMQCTL names another program than rabbitmqctl)
  --json        print the permissions as the management API takes them (PUT /api/permissions/VHOST/USER)

The user is made before: rabbitmqctl add_user USER (which asks for the password: as an argument, everybody would see it)
A reader is given the tag `monitoring`, in place of whatever tags it has.
EOF2
}

main() {
  local queue=jobs prefix='' vhost=/ declare=yes how=print
  while [[ ${1:-} == -* ]]; do
    case $1 in
      --queue) queue=${2:?--queue needs a name} && shift 2 ;;
      --prefix) prefix=${2:?--prefix needs a name} && shift 2 ;;
      --vhost) vhost=${2:?--vhost needs a name} && shift 2 ;;
      --no-declare) declare='' && shift ;;
      --apply) how=apply && shift ;;
      --json) how=json && shift ;;
      -h | --help) usage && return ;;
      *) misused "there is no option $1" ;;
    esac
  done
  (($# == 2)) || misused "a role and a user are needed"
  local role=$1 user=$2
  local nothing='^$' default_exchange='^amq\.default$' work ours dead
  if [[ -n $prefix ]]; then
    work="^$(literally "$prefix")"
    ours=$work
    dead="$work.*\\.dead\$"
  else
    work="^$(literally "$queue")\$"
    ours="^$(literally "$queue")(\\.delay\\..+|\\.dead)?\$"
    dead="^$(literally "$queue")\\.dead\$"
  fi
  local tags='' configure=$nothing write=$nothing read=$nothing
  case $role in
    worker)
      write=$default_exchange
      if [[ -n $declare ]]; then configure=$ours read=$ours; else read=$work; fi
      ;;
    publisher) write=$default_exchange ;;
    operator) write=$default_exchange read=$dead ;;
    reader) tags=monitoring ;;
    *) misused "the roles are worker, publisher, operator and reader, not $role" ;;
  esac
  case $how in
    json) printf '{"configure": "%s", "write": "%s", "read": "%s"}\n' "${configure//\\/\\\\}" "${write//\\/\\\\}" "${read//\\/\\\\}" ;;
    print)
      echo "rabbitmqctl set_permissions -p ${vhost@Q} ${user@Q} ${configure@Q} ${write@Q} ${read@Q}"
      [[ -z $tags ]] || echo "rabbitmqctl set_user_tags ${user@Q} $tags # in place of the tags that the user has"
      ;;
    apply)
      "${RABBITMQCTL:-rabbitmqctl}" set_permissions -p "$vhost" "$user" "$configure" "$write" "$read"
      [[ -z $tags ]] || "${RABBITMQCTL:-rabbitmqctl}" set_user_tags "$user" "$tags"
      ;;
  esac
}

# A name as a regular expression that matches nothing else.
# shellcheck disable=SC2001,SC2016 # many characters, each with itself behind a backslash
literally() { sed 's/[][\.*^$(){}?+|]/\\&/g' <<<"$1"; }

misused() {
  printf 'deploy/rabbitmq-permissions.sh: %s\n    see: deploy/rabbitmq-permissions.sh --help\n' "$1" >&2
  exit 2
}

main "$@"
