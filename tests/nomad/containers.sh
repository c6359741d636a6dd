# The docker job on both nodes, from one image of local files: as a system job and as a service job, each updated under load.
# Sourced by run.sh, whose words it speaks.
# shellcheck shell=bash disable=SC2154

in_containers() {
    nomad job run -detach=false -var image="$image" -var bind_address='${meta.address}' -var ready_address='${meta.address}' \
        -var public_address='${meta.address}' -var consul_address="{{ env \"meta.address\" }}:$CONSUL" \
        -var vault_address="$VAULT_ADDR" -var http_port=$HTTP -var https_port=$HTTPS -var ready_port=$READY \
        -var drain_seconds=3 -var 'nomad_variables=["portreeve/"]' -var more_settings="$(cat "$DIR/more.hcl")" \
        "$@" nomad/portreeve-docker.nomad.hcl >"$DIR/job.out" 2>&1
}
of_image() { docker ps --filter "ancestor=$image" --format '{{.ID}} {{.Image}} {{.Status}}'; }
two_containers() { [[ $(of_image | grep -c "$image Up") == 2 ]]; }

for form in system service; do
    step "the docker job as a $form job on both nodes, updated under load"
    if [[ -z ${DOCKER_HOST:-} ]]; then
        echo "left out: there is no dockerd on PATH"
        continue
    fi
    stop_gateway
    if [[ -z $image ]]; then
        docker version --format 'docker {{.Server.Version}}'
        # As docs/deploy/Dockerfile makes it, of files that are here: no registry is asked.
        image=portreeve-run:$BASE
        cp -r "$DIR/root" "$DIR/image"
        install -D /bin/sh "$DIR/image/bin/sh" # as every base image has, and the agent keeps Envoy with
        setcap cap_net_bind_service=+ep "$DIR/image/usr/local/bin/envoy"
        tar -C "$DIR/image" --xattrs --xattrs-include='*' -c . |
            docker import --change 'USER portreeve' --change 'ENTRYPOINT ["/usr/local/bin/portreeve"]' - "$image" >"$DIR/docker.out"
    fi
    as_form() { in_containers -var type="$form" -var count=2 "$@"; }
    as_form
    serving
    until_ok "two containers" two_containers
    for node in 1 2; do until_ok "the certificate on n$node" kept "$node" fifth; done
    echo "ready on both nodes as a $(kind) job, in two containers of $image in the network of the node; deployment $(deployment)"
    for host in "${both[@]}"; do echo "$host: $(ask "$host")"; done
    had=$(of_image | cut -d ' ' -f 1 | sort)
    updated as_form
    until_ok "two containers" two_containers
    [[ -z $(comm -12 <(echo "$had") <(of_image | cut -d ' ' -f 1 | sort)) ]]
    echo "two others of them"
done
