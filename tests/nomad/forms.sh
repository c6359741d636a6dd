# The gateway of run.sh in its other forms: as a service job, with the exec driver as nobody, with certificates in Nomad
# variables that are not its own job's, and from a Nomad Pack. Sourced by run.sh, whose words it speaks.
# shellcheck shell=bash disable=SC2154

closed() {
    local node port
    for node in 1 2; do
        for port in "$HTTP" "$HTTPS" "$READY"; do
            if (exec 3<>"/dev/tcp/127.0.0.$node/$port") 2>/dev/null; then return 1; fi
        done
    done
}
stop_gateway() { # its kind of job cannot be changed in place
    nomad job stop -purge portreeve >"$DIR/job.out" 2>&1
    until_ok "the end of the gateway" closed
}
both_ready() { for node in 1 2; do until_ok "the gateway on n$node" curl -fsS "http://127.0.0.$node:$READY/ready"; done; }
serve() { # addresses...: everything that the system job served
    local host address
    for address in "$@"; do
        for host in "${both[@]}"; do [[ $(ask "$host" "$address") == release* ]] || return 1; done
    done
}
serving() {
    both_ready
    until_ok "every service on both nodes" serve 127.0.0.1 127.0.0.2
}
kind() { nomad job inspect portreeve | field 'it["Job"]["Type"]'; }
updated() { # under load, by one drain_seconds more
    local before
    load_on "${both[@]}"
    sleep 2
    before=$(version_of)
    "$@" -var drain_seconds=4
    echo "version $before to $(version_of), deployment $(deployment)"
    sleep 5
    load_off
}

step "every form of the job files, as Nomad validates it"
for form in system service; do
    for driver in exec raw_exec docker; do
        given=(-var "type=$form")
        case $driver in
            docker) given+=(-var image=portreeve:0 nomad/portreeve-docker.nomad.hcl) ;;
            *) given+=(-var "driver=$driver" nomad/portreeve.nomad.hcl) ;;
        esac
        nomad job validate "${given[@]}" >"$DIR/job.out" 2>&1
        # It is no success with a warning.
        grep -qx 'Job validation successful' "$DIR/job.out"
        nomad job run -output "${given[@]}" >"$DIR/form.json"
        [[ $(field 'it["Job"]["Type"], {t["Driver"] for g in it["Job"]["TaskGroups"] for t in g["Tasks"]}' <"$DIR/form.json") == "('$form', {'$driver'})" ]]
        echo "$driver, $form: $(tail -n 1 "$DIR/job.out")"
    done
done

step "the same as a service job of two, updated under load"
stop_gateway
as_service() { gateway -var type=service -var count=2 "$@"; }
as_service
serving
echo "ready on both nodes as a $(kind) job; deployment $(deployment)"
updated as_service

step "the same with the exec driver as nobody, its state in the allocation, updated under load"
stop_gateway
in_chroot() {
    gateway -var driver=exec -var user=nobody -var data_dir=/alloc/data -var portreeve=/usr/local/bin/portreeve \
        -var envoy=/usr/local/bin/envoy -var 'nomad_variables=["nomad/jobs/portreeve", "portreeve/"]' "$@"
}
in_chroot
serving
tasks() { pgrep -c "$@" -f '^/usr/local/bin/(portreeve|envoy) '; }
[[ $(tasks -u nobody) == 6 && $(tasks) == 6 ]]
echo "ready on both nodes as a $(kind) job; deployment $(deployment); all 6 tasks run as nobody"
updated in_chroot
both_ready

step "a certificate in a Nomad variable of another path, before and after portreeve setup nomad -variables"
put_other() {
    keep_certificate "$1"
    nomad var put -force portreeve/kept certificate=@"$DIR/kept.pem" private_key=@"$DIR/kept.key" >"$DIR/variable.out" 2>&1
}
put_other fourth
consul kv get portreeve/config/edge | sed 's|nomad/jobs/portreeve|portreeve/kept|' | consul kv put portreeve/config/edge - >/dev/null
api_in_chroot() { find "$DIR/nomad-n$1/alloc" -maxdepth 4 -path '*/alloc/data/api.sock'; }
refused() { "$PORTREEVE" status -api-socket="$(api_in_chroot "$1")" | grep -A 8 -F 'portreeve/kept with 403'; }
for node in 1 2; do until_ok "the refusal on n$node" refused "$node"; done
echo "without the policy: $(refused 1 | grep -E 'error|help' | tr -s ' \n' ' ' | sed 's/ $//')"
"$PORTREEVE" setup nomad '-variables=portreeve/*' -dry-run
for node in 1 2; do refused "$node" >/dev/null; done
"$PORTREEVE" setup nomad '-variables=portreeve/*'
"$PORTREEVE" setup nomad '-variables=portreeve/*' | grep -E 'Nothing'
for node in 1 2; do until_ok "the certificate on n$node" kept "$node" fourth; done
put_other fifth
for node in 1 2; do until_ok "the next one on n$node" kept "$node" fifth; done
echo "with it both nodes serve the certificate, and the next one"

step "new files under the same names: another release updates the job that is the same but for that, under load"
load_on "${both[@]}"
sleep 2
before=$(version_of)
in_chroot -var drain_seconds=4
echo "without another release: version $before to $(version_of), deployment $(deployment)"
allocations() { nomad job allocs -json portreeve | field '" ".join(sorted(a["ID"] for a in it if a["ClientStatus"] == "running"))'; }
had=$(allocations)
in_chroot -var drain_seconds=4 -var release=2
[[ $(comm -12 <(tr ' ' '\n' <<<"$had") <(allocations | tr ' ' '\n') | wc -l) == 0 ]]
echo "with one: version $(version_of), deployment $(deployment), and no allocation of before"
sleep 5
load_off

step "both nodes cut off from Nomad's servers until these miss them, and back again"
had=$(allocations) ran=$(pgrep -f '^/usr/local/bin/(portreeve|envoy) ')
kill -STOP "${pid[nomad-n1]}" "${pid[nomad-n2]}"
nodes_are() { [[ $(nomad node status | grep -cw "$1") == 2 ]]; }
until_ok "both nodes to be missed" nodes_are disconnected
until_ok "the gateways to be missed" bash -c "(( \$(nomad job status portreeve | grep -cw unknown) >= 2 ))"
kill -CONT "${pid[nomad-n1]}" "${pid[nomad-n2]}"
until_ok "both nodes" nodes_are ready
same_run() { [[ $(allocations) == "$had" ]]; }
until_ok "the gateways that were there" same_run
# Nomad has given up what is behind them, and starts it again.
serving
same_run
[[ $(pgrep -f '^/usr/local/bin/(portreeve|envoy) ') == "$ran" ]]
echo "the two allocations that were there run on, in the same processes"

step "a second gateway beside the first on both nodes: a job of its own, and logins of its own"
own=(-name=internal -nomad-job=internal)
for product in consul vault; do
    absent "$PORTREEVE" setup "$product" "$jwks" -nomad-job=internal
    grep -o '.* belongs to the job .*' "$DIR/last.out"
    "$PORTREEVE" setup "$product" "$jwks" "${own[@]}" | grep ' done at '
done
"$PORTREEVE" setup nomad "${own[@]}" | grep ' done at '
keep_certificate inner
nomad var put -force nomad/jobs/internal certificate=@"$DIR/kept.pem" private_key=@"$DIR/kept.key" >"$DIR/variable.out" 2>&1
consul kv put portreeve/config/internal - >/dev/null <<HCL
gateway "internal" {
  listener "http" {
    port = $((HTTP + 1))
  }

  listener "https" {
    port     = $((HTTPS + 1))
    protocol = "https"
    tls {
      certificates = ["inner"]
    }
  }
}

certificate "inner" {
  nomad_variable {
    path = "nomad/jobs/internal"
  }
}

http_route "inner" {
  gateways  = ["internal"]
  hostnames = ["inner.example.com"]

  rule "all" {
    backend "upstream" "native" {}
  }
}
HCL
# Either reads the documents of both, and lets them use its own variables alone.
before=$(version_of)
in_chroot -var 'nomad_variables=["nomad/jobs/{job}"]' -var job=internal -var gateway=internal -var http_port=$((HTTP + 1)) \
    -var https_port=$((HTTPS + 1)) -var ready_port=$((READY + 1))
inner() { [[ $(curl -sS -m 5 -H "host: inner.example.com" "http://127.0.0.$1:$((HTTP + 1))/") == release* ]]; }
for node in 1 2; do until_ok "the second gateway on n$node" inner "$node"; done
inner_tls() { HTTPS=$((HTTPS + 1)) kept "$1" inner; }
for node in 1 2; do until_ok "its certificate on n$node" inner_tls "$node"; done
serving
[[ $(version_of) == "$before" ]]
said=0
for socket in "$DIR"/nomad-n*/alloc/*/alloc/data/api.sock; do
    # Those of allocations that ended answer no more.
    "$PORTREEVE" status -api-socket="$socket" >"$DIR/status.out" 2>&1 || continue
    absent grep not-allowed "$DIR/status.out"
    said=$((said + 1))
done
((said == 4))
echo "both serve on both nodes, and neither refuses the documents of the other; in status: $(consul kv get -keys portreeve/status/nodes/ | sed 's|.*/||' | tr '\n' ' ')"
nomad job stop -purge internal >"$DIR/job.out" 2>&1
consul kv delete portreeve/config/internal >/dev/null

step "the Nomad Pack, rendered for each driver as a system and as a service job, and run"
if command -v nomad-pack >/dev/null; then
    nomad-pack version | sed -n 1p
    odd='# 100%{x} of ${meta.y}, "quoted" \d <kept> & all' # arrives as it is
    for form in system service; do
        for driver in exec raw_exec; do
            to=$DIR/pack-$form-$driver
            nomad-pack render nomad/pack --var=type=$form --var=count=2 --var=driver=$driver --var="more_settings=$odd" \
                --to-dir="$to" >"$DIR/pack.out" 2>&1
            rendered=$(find "$to" -name '*.nomad')
            nomad job validate "$rendered" >"$DIR/job.out" 2>&1
            nomad job run -output "$rendered" | field 'it["Job"]["TaskGroups"][0]["Tasks"][0]["Templates"][0]["EmbeddedTmpl"]' |
                grep -F "$odd" >/dev/null
            echo "$driver, $form: $(tail -n 1 "$DIR/job.out")"
        done
    done
    stop_gateway
    nomad-pack run nomad/pack --var=type=service --var=count=2 --var=driver=exec --var=drain_seconds=3 --var=http_port=$HTTP \
        --var=https_port=$HTTPS --var=ready_port=$READY --var='bind_address=${meta.address}' \
        --var='ready_address=${meta.address}' --var='public_address=${meta.address}' \
        --var="consul_address={{ env \"meta.address\" }}:$CONSUL" --var="vault_address=$VAULT_ADDR" \
        --var='nomad_variables=["portreeve/"]' --var="more_settings=$(cat "$DIR/more.hcl")" >"$DIR/pack.out" 2>&1
    serving
    until_ok "the deployment" bash -c "nomad job deployments -latest portreeve | grep -w successful"
    for node in 1 2; do until_ok "the certificate on n$node" kept "$node" fifth; done
    echo "ready on both nodes as a $(kind) job; deployment $(deployment)"
else
    echo "left out: there is no nomad-pack on PATH"
fi
